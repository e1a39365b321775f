"""The topics that an installation needs on a Kafka cluster."""

from infra.config.settings import Settings
from infra.installation.processors import all_processors
from infra.runtime.errors import ConfigError
from streams.runners.kafka.topics import Declared, TopicChange, apply, declared_topics, plan


def planned_changes(settings: Settings) -> list[TopicChange]:
    """Return how the configured cluster differs from what this installation needs.

    Raises:
        ConfigError: the log is not a Kafka cluster.
        LogUnavailableError: the cluster does not answer.
    """
    if settings.log_kind != "kafka":
        raise ConfigError(
            'the log is embedded, which makes its topics itself; set log = "kafka://host:port"'
        )
    return plan(settings.cluster, needed_topics(settings))


def needed_topics(settings: Settings) -> list[Declared]:
    """Return the topics of events and of every processor's states."""
    return declared_topics(all_processors(settings))


def missing_topics(settings: Settings) -> list[str]:
    """Return the names of topics that the configured cluster lacks."""
    return [change.topic for change in planned_changes(settings) if change.kind == "create"]


def declare_topics(settings: Settings, replication: int = -1) -> list[TopicChange]:
    """Declare missing topics and change different settings. Return these changes. Nothing is shrunk
    or deleted.
    """
    changes = planned_changes(settings)
    apply(settings.cluster, changes, replication)
    return changes
