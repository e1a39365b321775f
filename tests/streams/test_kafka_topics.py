"""Topics on a cluster become what is declared; nothing is shrunk or deleted."""

from dataclasses import replace
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from infra.config import Settings
from infra.topics import needed
from schemas.topics import REWARDS, ROUTES, SPANS, TOPICS
from streams.errors import LogUnavailableError
from streams.kafka.cluster import Cluster
from streams.kafka.log import KafkaLog
from streams.kafka.topics import Declared, apply, declared_topics, plan
from streams.records import NewRecord
from tests.kafka import declare_afresh
from tests.waiting import eventually


@pytest.fixture
def declared(kafka: str, tmp_path: Path) -> list[Declared]:
    declare_afresh(kafka)
    return needed(Settings(data_dir=tmp_path, log=f"kafka://{kafka}"))


def test_what_is_missing_is_created_and_then_nothing_is_left_to_do(kafka: str, declared: list[Declared]) -> None:
    changes = plan(Cluster(kafka), declared)
    assert {change.kind for change in changes} == {"create"}
    assert {change.topic for change in changes} == {
        "everloop.trajectories-states-changelog",
        "everloop.lessons-states-changelog",
        "everloop.judge-states-changelog",
        "everloop.promotion-states-changelog",
        next(topic.name for topic in declared if topic.name.startswith("everloop.learn-supervisor-policy")),
    }
    apply(Cluster(kafka), changes)
    assert plan(Cluster(kafka), declared) == []


def test_topics_are_kept_as_long_as_they_are_declared_to_be(kafka: str, declared: list[Declared]) -> None:
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


def test_another_number_of_partitions_is_said_and_left(kafka: str, declared: list[Declared]) -> None:
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
