"""Experiment trackers. Each one that `training.track` names gets every step of every run.

ClickHouse needs no tracker: analytics reads the topic of trainings.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from infra.runtime.errors import ConfigError
from schemas.trainings import ENDED, Training

Track = Callable[[Training], None]


def trackers(names: Sequence[str], folder: Path) -> list[Track]:
    """Return the hooks of trackers by name.

    Args:
        folder: where those that keep files keep them.

    Raises:
        ConfigError: one is unknown, or not installed.
    """
    makers: dict[str, Callable[[Path], Track]] = {
        "tensorboard": _tensorboard,
        "mlflow": _mlflow,
        "wandb": _wandb,
    }
    found = []
    for name in names:
        if name not in makers:
            raise ConfigError(f"training.track names {name!r}; there are {', '.join(makers)}")
        try:
            found.append(makers[name](folder))
        except ImportError as error:
            raise ConfigError(
                f"training.track names {name}, which is not installed: {error}"
            ) from error
    return found


def _tensorboard(folder: Path) -> Track:
    from tensorboard.summary import Writer

    # One writer for each run. It lives until the run ends.
    writers: dict[str, Any] = {}

    def track(training: Training) -> None:
        writer = writers.get(training.job) or Writer(str(folder / "tensorboard" / training.job))
        writers[training.job] = writer
        for name, value in training.metrics.items():
            writer.add_scalar(name, value, step=training.step)
        if training.state in ENDED:
            writers.pop(training.job).close()

    return track


def _mlflow(folder: Path) -> Track:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{(folder / 'mlflow.db').absolute()}")
    runs: dict[str, str] = {}

    def track(training: Training) -> None:
        if training.job not in runs:
            experiment = client.get_experiment_by_name(training.target)
            number = (
                experiment.experiment_id
                if experiment
                else client.create_experiment(training.target)
            )
            runs[training.job] = client.create_run(number, run_name=training.job).info.run_id
        for name, value in training.metrics.items():
            # MLflow refuses `@` in names of metrics.
            client.log_metric(runs[training.job], name.replace("@", "_"), value, step=training.step)
        if training.state in ENDED:
            status = "FINISHED" if training.state == "succeeded" else "FAILED"
            client.set_terminated(runs.pop(training.job), status=status)

    return track


def _wandb(folder: Path) -> Track:
    import wandb

    start = partial(wandb.init, project="everloop", dir=str(folder), reinit="create_new")
    runs: dict[str, Any] = {}

    def track(training: Training) -> None:
        run = runs.get(training.job) or start(name=training.job, group=training.target)
        runs[training.job] = run
        run.log(dict(training.metrics), step=training.step)
        if training.state in ENDED:
            runs.pop(training.job).finish(exit_code=int(training.state != "succeeded"))

    return track
