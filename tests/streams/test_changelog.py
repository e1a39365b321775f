"""A partition's states and outputs on Apache Kafka: one writer, all of a batch or nothing."""

import asyncio
from collections.abc import Sequence

import pytest
from aiokafka.errors import ProducerFenced

from schemas.topics import REWARDS
from streams.processors.trajectories import TrajectoryJoin
from streams.runners.kafka.changelog import TransactionalChangelog
from streams.runners.kafka.states import OutdatedError
from streams.storage.kafka.cluster import Cluster
from streams.storage.kafka.layout import state_key
from streams.storage.kafka.log import KafkaLog
from streams.storage.log import read_all
from streams.storage.records import NewRecord, Record
from tests.kafka import declare_afresh

GROUP = TrajectoryJoin().group


@pytest.fixture
def cluster(kafka: str) -> Cluster:
    declare_afresh(kafka, [TrajectoryJoin()])
    return Cluster(kafka)


def state(key: str, value: bytes | None) -> NewRecord:
    return NewRecord("", state_key(key), value, (("deadline", b"17"),))


def values(records: Sequence[Record]) -> list[bytes | None]:
    return [record.value for record in records]


async def test_whoever_loads_a_partition_last_is_the_only_one_to_write_it(cluster: Cluster) -> None:
    paused, later = (TransactionalChangelog(cluster, GROUP, 3) for _ in range(2))
    assert await paused.load() == []
    await paused.commit([state("a", b"1"), state("b", b"2")], [])
    assert values(await later.load()) == [b"1", b"2"]
    with pytest.raises(OutdatedError, match="Fenced"):
        await paused.commit([state("a", b"old")], [])
    await later.commit([state("a", None)], [])
    stored = await paused.load()
    assert values(stored) == [b"1", b"2", None]
    assert stored[0].headers == (("deadline", b"17"),)
    with pytest.raises(OutdatedError, match="Fenced"):
        await later.commit([state("a", b"3")], [])
    await paused.close()
    await later.close()


async def test_partitions_are_held_apart(cluster: Cluster) -> None:
    first, second = (
        TransactionalChangelog(cluster, GROUP, 0),
        TransactionalChangelog(cluster, GROUP, 1),
    )
    await first.load()
    await second.load()
    await asyncio.gather(
        first.commit([state("a", b"1")], []), second.commit([state("b", b"2")], [])
    )
    await first.close()
    await second.close()
    with KafkaLog(cluster) as log:
        found = await asyncio.to_thread(
            lambda: (log.state(GROUP, "a"), log.state(GROUP, "b"), log.state(GROUP, "c"))
        )
    assert found == (b"1", b"2", None)


async def test_outputs_are_read_when_their_states_are_stored_and_never_otherwise(
    cluster: Cluster,
) -> None:
    first, heir = (
        TransactionalChangelog(cluster, GROUP, 2),
        TransactionalChangelog(cluster, GROUP, 2),
    )
    await first.load()
    await first.commit([state("a", b"1")], [output(number) for number in range(3)])
    await first._producer.begin_transaction()  # and then it dies
    await first._send(REWARDS.name, output(99))
    await first._producer.flush()
    assert values(await heir.load()) == [b"1"]
    with pytest.raises(ProducerFenced):
        await first._producer.commit_transaction()
    await heir.commit([state("a", b"3")], [output(3)])
    await first.close()
    await heir.close()

    def read() -> tuple[list[bytes | None], dict[tuple[str, int], int]]:
        with KafkaLog(cluster) as log:
            found = [record.value for record in read_all(log, REWARDS.name)]
            everything = log.unread(
                {(REWARDS.name, partition): 0 for partition in range(REWARDS.partitions)}
            )
            last = next(record for record in read_all(log, REWARDS.name) if record.value == b"3")
            return found, everything | log.unread({(last.topic, last.partition): last.offset + 1})

    found, unread = await asyncio.to_thread(read)
    assert found == [b"0", b"1", b"2", b"3"]
    assert set(unread.values()) == {0}, "what lies after the last record is no record"


def output(number: int) -> NewRecord:
    return NewRecord(REWARDS.name, b"k", b"%d" % number)
