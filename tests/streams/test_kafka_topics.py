"""Topics on a cluster become what is declared; nothing is shrunk or deleted."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from infra.config.settings import Settings
from infra.installation.processors import all_processors
from infra.installation.topics import needed_topics
from schemas.topics import REWARDS, ROUTES, SPANS, TOPICS
from streams.runners.kafka.topics import Declared, apply, declared_topics, plan
from streams.storage.errors import LogUnavailableError
from streams.storage.kafka.cluster import Cluster
from streams.storage.kafka.layout import changelog_of
from streams.storage.kafka.log import KafkaLog
from streams.storage.log import read_all
from streams.storage.partitions import partition_of
from streams.storage.records import NewRecord
from tests.kafka import declare_afresh
from tests.waiting import eventually


@pytest.fixture
def declared(kafka: str, tmp_path: Path) -> list[Declared]:
    declare_afresh(kafka)
    return needed_topics(Settings(data_dir=tmp_path, log=f"kafka://{kafka}"))


def test_what_is_missing_is_created_and_then_nothing_is_left_to_do(
    kafka: str, declared: list[Declared]
) -> None:
    changes = plan(Cluster(kafka), declared)
    assert {change.kind for change in changes} == {"create"}
    states = {changelog_of(processor.group) for processor in all_processors(Settings())}
    assert "everloop.trajectories-states-changelog" in states
    assert {change.topic for change in changes} == states
    apply(Cluster(kafka), changes)
    assert plan(Cluster(kafka), declared) == []


def test_topics_are_kept_as_long_as_they_are_declared_to_be(
    kafka: str, declared: list[Declared]
) -> None:
    configs = {topic.name: dict(topic.configs) for topic in declared}
    assert configs[ROUTES.name]["cleanup.policy"] == "compact"
    assert configs[SPANS.name]["retention.ms"] == str(90 * 24 * 3600 * 1000)
    assert configs[REWARDS.name]["retention.ms"] == "-1"


def test_a_setting_that_differs_is_shown_and_set(kafka: str, declared: list[Declared]) -> None:
    spans = next(topic for topic in declared if topic.name == SPANS.name)
    shorter = replace(spans, configs=tuple({**dict(spans.configs), "retention.ms": "1000"}.items()))
    (change,) = plan(Cluster(kafka), [shorter])
    assert (change.kind, change.detail) == ("configure", "retention.ms: 7776000000 → 1000")
    apply(Cluster(kafka), [change])
    eventually(lambda: not plan(Cluster(kafka), [shorter]), "the new setting")


def test_another_number_of_partitions_is_said_and_left(
    kafka: str, declared: list[Declared]
) -> None:
    rewards = next(topic for topic in declared if topic.name == REWARDS.name)
    for partitions in (2, 16):
        (change,) = plan(Cluster(kafka), [replace(rewards, partitions=partitions)])
        assert change.kind == "keep"
        assert f"has 8 partitions, {partitions} are declared" in change.detail
        apply(Cluster(kafka), [change])
    with KafkaLog(Cluster(kafka)) as log:
        assert len(log.ends(REWARDS.name)) == REWARDS.partitions


def test_topics_of_others_and_their_records_stay(kafka: str, declared: list[Declared]) -> None:
    with KafkaAdminClient(bootstrap_servers=kafka.split(",")) as admin:
        if "songs" not in admin.list_topics():
            admin.create_topics({"songs": {"num_partitions": 1, "replication_factor": 1}})
        with KafkaLog(Cluster(kafka)) as log:
            log.append([NewRecord(REWARDS.name, b"k", b"v")])
            apply(Cluster(kafka), plan(Cluster(kafka), declared_topics([])))
            assert sum(log.ends(REWARDS.name).values()) == 1
        assert {"songs", *TOPICS} <= set(admin.list_topics())


def test_a_cluster_that_is_not_there_is_said_to_be_so(declared: list[Declared]) -> None:
    with pytest.raises(LogUnavailableError, match="no Kafka at"):
        plan(Cluster("127.0.0.1:9"), declared)


@pytest.fixture
def hasty(kafka: str) -> Iterator[Callable[[str, dict[str, str]], KafkaLog]]:
    """Return what makes Kafka clean a topic at once, and a log on that cluster."""
    declare_afresh(kafka)
    logs: list[KafkaLog] = []

    def hurried(topic: str, configs: dict[str, str]) -> KafkaLog:
        with KafkaAdminClient(bootstrap_servers=[kafka]) as admin:
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=configs)])
        logs.append(KafkaLog(Cluster(kafka)))
        return logs[-1]

    yield hurried
    for log in logs:
        log.close()


def test_a_compacted_topic_keeps_the_last_record_of_each_key(
    hasty: Callable[[str, dict[str, str]], KafkaLog],
) -> None:
    quick = {"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01"}
    log = hasty(ROUTES.name, quick)
    place = partition_of(b"a", ROUTES.partitions)
    neighbour = next(
        key
        for key in (b"b", b"c", b"d", b"e", b"f", b"g")
        if partition_of(key, ROUTES.partitions) == place
    )
    for number in range(6):
        log.append([NewRecord(ROUTES.name, b"a", b"%d" % number)])
        time.sleep(0.15)  # a segment that is still written to is not cleaned

    def kept() -> list[bytes | None]:
        log.append(
            [NewRecord(ROUTES.name, neighbour, b"x")]
        )  # begins a new segment, so the last one can be cleaned
        return [record.value for record in read_all(log, ROUTES.name) if record.key == b"a"]

    eventually(lambda: kept() == [b"5"], "the cleaning of the topic")


def test_what_is_older_than_its_retention_goes_and_offsets_stay(
    hasty: Callable[[str, dict[str, str]], KafkaLog],
) -> None:
    log = hasty(SPANS.name, {"retention.ms": "1000", "segment.ms": "100"})
    ((partition, _),) = log.append([NewRecord(SPANS.name, b"k", b"old")])
    time.sleep(0.3)
    log.append([NewRecord(SPANS.name, b"k", b"new")])
    eventually(lambda: log.beginnings(SPANS.name)[partition] >= 1, "the end of what is old")
    assert log.ends(SPANS.name)[partition] == 2
