"""Apache Kafka for tests: a broker of this machine, or the one that EVERLOOP_TEST_KAFKA names."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient

from infra.kafka.jars import jars, java
from infra.kafka.local import Broker, LocalCluster
from infra.runtime.errors import ConfigError
from schemas.topics import PREFIX
from streams.processing.processor import Processor
from streams.runners.kafka.topics import apply, declared_topics, plan
from streams.storage.kafka.cluster import Cluster
from tests.waiting import eventually

RUNNING = "EVERLOOP_TEST_KAFKA"
REQUIRED = "EVERLOOP_REQUIRE_KAFKA"


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """Run a broker and yield its address; skip the test without one, unless Kafka is required."""
    if running := os.environ.get(RUNNING):
        yield running
        return
    with local_cluster(folder) as local:
        yield local.bootstrap


@contextmanager
def local_cluster(
    folder: Path, brokers: int = 1, more: Callable[[Broker], Mapping[str, object]] = lambda _: {}
) -> Iterator[LocalCluster]:
    """Run brokers that a test may stop; skip the test without Java or Kafka's jars, unless Kafka is
    required. Brokers that are here and do not start are a failure.
    """
    try:
        java()
        jars()
    except ConfigError as error:
        if os.environ.get(REQUIRED) == "1":
            raise
        pytest.skip(f"no Kafka: {error}")
    local = LocalCluster(folder, more)
    try:
        local.start(brokers)
        yield local
    finally:
        local.stop()


def declare_afresh(bootstrap: str, processors: Sequence[Processor[Any]] = ()) -> None:
    """Delete everything of Everloop's on a test cluster and declare the topics anew."""
    with KafkaAdminClient(bootstrap_servers=bootstrap.split(",")) as admin:

        def ours() -> list[str]:
            return [name for name in admin.list_topics() if name.startswith(PREFIX)]

        if there := ours():
            admin.delete_topics(there)
            eventually(lambda: not ours(), "the end of the old topics")
        groups = [
            group["group_id"]
            for group in admin.list_groups()
            if group["group_id"].startswith(PREFIX)
        ]
        if groups:
            admin.delete_groups(groups)
    target = Cluster(bootstrap)
    apply(target, plan(target, declared_topics(processors)))
