"""Progress of a run: reports what TRL's trainers log, and ends a run whose loss is not finite."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from learners.training.config import TrainingConfig
from learners.training.errors import TrainingError

ReportProgress = Callable[[int, int, dict[str, float]], None]
"""Called with the step, the number of all steps, and metrics by name."""


class Reporting(TrainerCallback):
    """Passes on what a trainer logs."""

    def __init__(self, report: ReportProgress) -> None:
        self._report = report

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the callback's signature
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Report the metrics.

        Raises:
            TrainingError: the loss or the gradient's norm is not finite, which would spoil all
                later weights.
        """
        metrics = {
            name: float(value)
            for name, value in (logs or {}).items()
            if isinstance(value, int | float)
        }
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics.get(name, 0.0)):
                raise TrainingError(
                    f"{name} is {metrics[name]} at step {state.global_step}; try a lower"
                    " learning_rate"
                )
        self._report(state.global_step, state.max_steps, metrics)


def trainer_arguments(config: TrainingConfig, folder: Path, evaluated: bool) -> dict[str, Any]:
    """Return the arguments that all of TRL's trainers get.

    Args:
        evaluated: whether there are held-out rows; only then can the best weights be kept.
    """
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": config.seed,
        "data_seed": config.seed,
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.epochs,
        "max_steps": config.steps or -1,
        "per_device_train_batch_size": config.micro_batch,
        "per_device_eval_batch_size": config.micro_batch,
        "gradient_accumulation_steps": config.batch // config.micro_batch,
        "warmup_steps": config.warmup,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.gradient_clip,
        # Every step, so that a loss that is not finite ends the run at once.
        "logging_steps": 1,
        "save_steps": config.save_every,
        # The best and the last. Each is larger than the model, because of its optimizer.
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
    }
    if evaluated:
        arguments |= {
            "eval_strategy": "steps",
            "eval_steps": config.evaluate_every,
            # Save at each evaluation: the best weights can be loaded only if they were saved.
            "save_steps": config.evaluate_every,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
        }
    return arguments | on_this_device()


def on_this_device() -> dict[str, Any]:
    """Return the arguments that depend on whether there is a GPU."""
    import torch

    if torch.cuda.is_available():
        return {"bf16": True, "gradient_checkpointing": True}
    return {
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        # Pinned memory speeds up copies to a GPU, and there is none.
        "dataloader_pin_memory": False,
    }


def callbacks(
    config: TrainingConfig, report: ReportProgress, evaluated: bool
) -> list[TrainerCallback]:
    """Return the callbacks that report progress and stop a training early."""
    stopping = (
        [EarlyStoppingCallback(config.patience)]
        if evaluated and config.patience is not None
        else []
    )
    return [Reporting(report), *stopping]


def run(trainer: Any, folder: Path) -> dict[str, float]:
    """Train to the end; return the metrics of the best evaluation.

    A run that was interrupted continues from its last saved state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained = trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    best: dict[str, Any] = min(history, key=lambda entry: float(entry["eval_loss"]), default={})
    metrics = {
        "train_loss": trained.training_loss,
        "steps": float(trainer.state.global_step),
    } | best
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
