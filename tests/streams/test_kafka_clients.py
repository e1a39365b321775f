"""The clients of the Faust runner on Apache Kafka: one writer a partition's states, and events in order."""

import asyncio
from collections.abc import Sequence

import pytest

from schemas.topics import REWARDS
from streams.kafka.clients import OrderedWriter, TransactionalChangelog
from streams.kafka.cluster import Cluster
from streams.kafka.log import KafkaLog
from streams.kafka.states import OutdatedError, state_key
from streams.log import read_all
from streams.records import NewRecord, Record
from streams.trajectories import TrajectoryJoin
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
    await paused.write([state("a", b"1"), state("b", b"2")])
    assert values(await later.load()) == [b"1", b"2"]
    with pytest.raises(OutdatedError, match="Fenced"):
        await paused.write([state("a", b"old")])
    await later.write([state("a", None)])
    stored = await paused.load()
    assert values(stored) == [b"1", b"2", None]
    assert stored[0].headers == (("deadline", b"17"),)
    with pytest.raises(OutdatedError, match="Fenced"):
        await later.write([state("a", b"3")])
    await paused.close()
    await later.close()


async def test_partitions_are_held_apart(cluster: Cluster) -> None:
    first, second = TransactionalChangelog(cluster, GROUP, 0), TransactionalChangelog(cluster, GROUP, 1)
    await first.load()
    await second.load()
    await asyncio.gather(first.write([state("a", b"1")]), second.write([state("b", b"2")]))
    await first.close()
    await second.close()
    with KafkaLog(cluster) as log:
        found = await asyncio.to_thread(lambda: (log.state(GROUP, "a"), log.state(GROUP, "b"), log.state(GROUP, "c")))
    assert found == (b"1", b"2", None)


async def test_events_of_a_partition_arrive_in_the_order_they_were_handed_over(cluster: Cluster) -> None:
    write = OrderedWriter(cluster)
    for batch in range(5):
        await write([NewRecord(REWARDS.name, b"k", b"%d" % number) for number in range(batch * 200, batch * 200 + 200)])
    await write.close()

    def written() -> list[int]:
        with KafkaLog(cluster) as log:
            return [int(record.value or b"") for record in read_all(log, REWARDS.name)]

    assert await asyncio.to_thread(written) == list(range(1000))
