"""The choice between unsloth and peft.

Ask it before you import trl, transformers or peft: unsloth changes them when it is imported. This
module may import only torch.
"""

from functools import cache

import torch

from learners.training.config import AnyConfig
from learners.training.errors import TrainingError


def unsloth_trains(config: AnyConfig) -> bool:
    """Return whether unsloth loads and saves the weights. Imports unsloth if so.

    Raises:
        TrainingError: the configuration asks for unsloth, and it cannot run here.
    """
    if config.method == "ppo" or config.backend == "peft":
        # verl loads the weights itself.
        return False
    # unsloth raises when it is imported on a machine without a GPU.
    if not torch.cuda.is_available():
        if config.backend == "unsloth":
            raise TrainingError(
                "unsloth needs a CUDA GPU, and this machine has none; set backend to peft or auto"
            )
        return False
    if not _import_unsloth():
        if config.backend == "unsloth":
            raise TrainingError("unsloth is not installed; install the extra `sft-gpu`")
        return False
    return True


@cache
def _import_unsloth() -> bool:
    try:
        import unsloth  # noqa: F401
    except ImportError:
        return False
    return True
