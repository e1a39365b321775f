"""The trainer of an installation, and the process of each of its runs."""

import subprocess
from functools import partial

from infra.config.settings import Settings
from infra.training.jobs import JobFolder, start_process
from infra.training.trainer import Trainer
from streams.storage.artifacts import ArtifactStore
from streams.storage.log import Log

RUN_MODULE = "infra.installation.training_run"


def configured_trainer(settings: Settings, log: Log) -> Trainer:
    """Return the trainer, with a log of its own."""
    return Trainer(
        settings.training,
        settings.data_dir,
        ArtifactStore(settings.artifacts_dir),
        partial(start_run, settings),
        log,
    )


def start_run(settings: Settings, folder: JobFolder) -> "subprocess.Popen[bytes]":
    """Start the process of a job, in this installation."""
    return start_process(folder, RUN_MODULE, settings.training.python, settings.environment)
