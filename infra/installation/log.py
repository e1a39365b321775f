"""Opening the configured log."""

from infra.config.settings import Settings
from streams.storage.embedded.database import BUSY_TIMEOUT_S, Durability
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import Log


def open_log(
    settings: Settings, durability: Durability = "process", timeout_s: float = BUSY_TIMEOUT_S
) -> Log:
    """Return a connection to the log.

    Args:
        durability: what an append survives, on the embedded log; Kafka's in-sync replicas always
            have it.
        timeout_s: how long the log may be locked or away before LogUnavailableError.

    Raises:
        LogUnavailableError, LogUnreadableError: see `streams.storage.errors`. Kafka is asked only
            when it is needed.
    """
    if settings.log_kind == "kafka":
        from streams.storage.kafka.log import (
            KafkaLog,  # a process on the embedded log needs no Kafka client
        )

        return KafkaLog(settings.cluster, timeout_s)
    return EmbeddedLog(settings.log_path, durability, timeout_s)
