"""Opening the configured log for reading and appending."""

from infra.config import ConfigError, Settings
from streams.embedded.database import BUSY_TIMEOUT_S, Durability
from streams.embedded.log import EmbeddedLog


def open_log(
    settings: Settings, durability: Durability = "process", busy_timeout_s: float = BUSY_TIMEOUT_S
) -> EmbeddedLog:
    """Return a connection to the embedded log.

    Raises:
        ConfigError: the configured log is a Kafka cluster, which the command does not read yet.
        LogUnavailableError, LogUnreadableError: see `streams.embedded.database`.
    """
    if settings.log_kind != "sqlite":
        raise ConfigError(f'log is {settings.log}; this command reads the embedded log only (log = "sqlite:///…")')
    return EmbeddedLog(settings.log_path, durability, busy_timeout_s)
