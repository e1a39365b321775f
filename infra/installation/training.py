"""The trainer of an installation."""

from infra.config.settings import Settings
from infra.training.trainer import Trainer
from streams.storage.artifacts import ArtifactStore
from streams.storage.log import Log


def configured_trainer(settings: Settings, log: Log) -> Trainer:
    """Return what trains models and serves them, with a log of its own."""
    return Trainer(
        settings.training,
        settings.data_dir,
        ArtifactStore(settings.artifacts_dir),
        settings.environment,
        log,
    )
