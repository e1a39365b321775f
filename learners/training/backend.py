"""Whether unsloth trains: asked before trl, transformers or peft are imported, which it changes
when it is imported.

Only torch may be imported here.
"""

from functools import cache

import torch

from learners.training.config import AnyConfig
from learners.training.errors import TrainingError


def unsloth_trains(config: AnyConfig) -> bool:
    """Return whether unsloth is to load and save the weights; it is imported then.

    Raises:
        TrainingError: it is asked for and cannot run here.
    """
    if config.method == "ppo" or config.backend == "peft":
        return False  # verl loads the weights itself
    # It raises when it is imported where there is no GPU.
    if not torch.cuda.is_available():
        if config.backend == "unsloth":
            raise TrainingError(
                "unsloth needs a CUDA GPU, and none is here; set backend to peft or auto"
            )
        return False
    if not _import_unsloth():
        if config.backend == "unsloth":
            raise TrainingError("unsloth is not installed; it is the extra `sft-gpu`")
        return False
    return True


@cache
def _import_unsloth() -> bool:
    try:
        import unsloth  # noqa: F401
    except ImportError:
        return False
    return True
