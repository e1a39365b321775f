"""Topics of a Kafka cluster: how they differ from those declared, and the change.

Nothing is ever shrunk or deleted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError

from schemas.topics import DEAD_LETTERS, TOPICS
from streams.processing.processor import Processor
from streams.storage.errors import LogUnavailableError
from streams.storage.kafka.cluster import Cluster
from streams.storage.kafka.layout import changelog_of
from streams.storage.kafka.log import knock
from streams.storage.records import MAX_RECORD_BYTES

LOGIN_TIMEOUT_MS = 10_000


@dataclass(frozen=True)
class Declared:
    """A topic as it should be.

    Attributes:
        configs: names and values of Kafka's, as far as Everloop sets them.
    """

    name: str
    partitions: int
    configs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TopicChange:
    """What differs on one topic.

    Attributes:
        kind: `create`, `configure`, or `keep`: a difference that is left as it is, for the reason
            in `detail`.
    """

    topic: str
    kind: Literal["create", "configure", "keep"]
    detail: str
    declared: Declared


def declared_topics(processors: Iterable[Processor[Any]]) -> list[Declared]:
    """Return the topics of events, and those in which processors keep their states."""
    topics = []
    for topic in TOPICS.values():
        retention = -1 if topic.retention is None else int(topic.retention.total_seconds() * 1000)
        configs = {"cleanup.policy": topic.cleanup, "retention.ms": str(retention)}
        topics.append(_declaration(topic.name, topic.partitions, configs))
    for processor in processors:
        configs = {"cleanup.policy": "compact", "retention.ms": "-1"}
        topics.append(
            _declaration(changelog_of(processor.group), processor.topics[0].partitions, configs)
        )
    return topics


def plan(cluster: Cluster, declared: Sequence[Declared]) -> list[TopicChange]:
    """Return how a cluster's topics differ from those declared, in the order declared.

    Raises:
        LogUnavailableError: the cluster does not answer.
    """
    partitions, configs = _find_present(cluster, declared)
    changes: list[TopicChange] = []
    for topic in declared:
        if topic.name not in partitions:
            settings = ", ".join(f"{name}={value}" for name, value in topic.configs)
            detail = f"{topic.partitions} partitions, {settings}"
            changes.append(TopicChange(topic.name, "create", detail, topic))
            continue
        if partitions[topic.name] != topic.partitions:
            detail = (
                f"has {partitions[topic.name]} partitions, {topic.partitions} are declared: left"
                " as it is, because keys would move to other partitions than their states"
            )
            changes.append(TopicChange(topic.name, "keep", detail, topic))
        found = configs[topic.name]
        different = [
            f"{name}: {found[name]} → {value}"
            for name, value in topic.configs
            if found[name] != value
        ]
        if different:
            changes.append(TopicChange(topic.name, "configure", ", ".join(different), topic))
    return changes


def _find_present(
    cluster: Cluster, declared: Sequence[Declared]
) -> tuple[dict[str, int], dict[str, dict[str, str]]]:
    """Return the partitions and the configurations of those declared topics that are there.

    Raises:
        LogUnavailableError: the cluster does not answer.
    """
    with _admin(cluster) as admin:
        try:
            described = {
                topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics()
            }
            names = [topic.name for topic in declared if cluster.prefixed(topic.name) in described]
            resources = [
                ConfigResource(ConfigResourceType.TOPIC, cluster.prefixed(name)) for name in names
            ]
            # Without resources Kafka would describe every topic of the cluster.
            found = (
                admin.describe_configs(resources, config_filter="all")["topic"] if resources else {}
            )
        except KafkaError as error:
            raise LogUnavailableError(
                f"cannot describe topics on {cluster.bootstrap}: {error}"
            ) from error
    configs = {
        name: {key: entry["value"] for key, entry in found[cluster.prefixed(name)].items()}
        for name in names
    }
    return {name: described[cluster.prefixed(name)] for name in names}, configs


def apply(cluster: Cluster, changes: Sequence[TopicChange], replication: int = -1) -> None:
    """Make the changes; those of kind `keep` are left. Brokers may take a moment to show new
    settings.

    Args:
        replication: of new topics; -1 is the cluster's default.

    Raises:
        LogUnavailableError: the cluster does not answer or refuses.
    """
    created = {
        cluster.prefixed(change.topic): {
            "num_partitions": change.declared.partitions,
            "replication_factor": replication,
            "configs": dict(change.declared.configs),
        }
        for change in changes
        if change.kind == "create"
    }
    configured = [
        ConfigResource(
            ConfigResourceType.TOPIC,
            cluster.prefixed(change.topic),
            configs=dict(change.declared.configs),
        )
        for change in changes
        if change.kind == "configure"
    ]
    with _admin(cluster) as admin:
        try:
            if created:
                admin.create_topics(created)
                # Brokers answer before every one of them knows the topic.
                admin.wait_for_topics(list(created))
            results = admin.alter_configs(configured)["topic"] if configured else {}
        except KafkaError as error:
            raise LogUnavailableError(
                f"cannot declare topics on {cluster.bootstrap}: {error}"
            ) from error
    if refused := {topic: result for topic, result in results.items() if result != "OK"}:
        raise LogUnavailableError(f"{cluster.bootstrap} refused to configure topics: {refused}")


def _declaration(name: str, partitions: int, configs: dict[str, str]) -> Declared:
    most = MAX_RECORD_BYTES * (2 if name == DEAD_LETTERS.name else 1)
    return Declared(name, partitions, tuple({**configs, "max.message.bytes": str(most)}.items()))


def _admin(cluster: Cluster) -> Any:
    knock(cluster.servers)
    try:
        return KafkaAdminClient(**cluster.client_options, bootstrap_timeout_ms=LOGIN_TIMEOUT_MS)
    except KafkaError as error:
        raise LogUnavailableError(
            f"no Kafka at {cluster.bootstrap}: {error}{cluster.login_hint}"
        ) from error
