"""What every log keeps, on SQLite and on Apache Kafka alike."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from schemas.clock import now
from schemas.topics import REWARDS, ROUTES, SPANS, TOPICS
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.kafka.cluster import Cluster
from streams.storage.kafka.log import KafkaLog
from streams.storage.log import Log, read_all
from streams.storage.partitions import partition_of
from streams.storage.records import NewRecord
from tests.kafka import declare_afresh

TOPIC = REWARDS.name
PARTITION = partition_of(b"k", REWARDS.partitions)
PLACE = (TOPIC, PARTITION)

Open = Callable[[], Log]


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Return what opens another connection to one fresh log."""
    if request.param == "embedded":
        return lambda: EmbeddedLog(tmp_path / "log.db")
    bootstrap: str = request.getfixturevalue("kafka")
    declare_afresh(bootstrap)
    return lambda: KafkaLog(Cluster(bootstrap))


@pytest.fixture
def log(open_log: Open) -> Iterator[Log]:
    with open_log() as opened:
        yield opened


def value(number: int, key: bytes = b"k") -> NewRecord:
    return NewRecord(TOPIC, key, str(number).encode())


def numbers(log: Log) -> list[int]:
    return [int(record.value or b"") for record in read_all(log, TOPIC)]


def test_records_of_a_key_are_read_in_the_order_they_were_written(log: Log) -> None:
    assert log.append([value(number) for number in range(10)]) == [
        (PARTITION, offset) for offset in range(10)
    ]
    assert [record.value for record in log.read(*PLACE, 3, 4)] == [b"3", b"4", b"5", b"6"]
    assert log.read(*PLACE, 10, 4) == []


def test_a_key_lies_in_the_partition_that_kafkas_own_hash_gives(log: Log) -> None:
    keys = [f"rollout-{number}".encode() for number in range(50)]
    positions = log.append([value(0, key) for key in keys])
    assert [partition for partition, _ in positions] == [
        partition_of(key, REWARDS.partitions) for key in keys
    ]


def test_a_fetch_goes_on_from_where_the_last_one_ended_whatever_the_batch(log: Log) -> None:
    written = [value(number, f"k{number % 20}".encode()) for number in range(300)]
    log.append(written)
    positions = {(TOPIC, partition): 0 for partition in range(REWARDS.partitions)}
    seen = []
    while records := log.fetch(positions, 7):
        assert len(records) <= 7
        positions |= {(record.topic, record.partition): record.offset + 1 for record in records}
        seen += records
    assert sorted(int(record.value or b"") for record in seen) == list(range(300))
    for partition in range(REWARDS.partitions):
        offsets = [record.offset for record in seen if record.partition == partition]
        assert all(later == earlier + 1 for earlier, later in pairwise(offsets))


def test_a_fetch_waits_for_what_is_about_to_come(open_log: Open, log: Log) -> None:
    assert log.fetch({PLACE: 0}, 10, wait_s=0.05) == []

    def write() -> None:
        with open_log() as writer:
            writer.append([value(1)])

    thread = threading.Timer(0.2, write)
    thread.start()
    (record,) = log.fetch({PLACE: 0}, 10, wait_s=30)
    thread.join()
    assert record.value == b"1"


def test_keys_headers_tombstones_and_large_values_come_back_as_they_went(log: Log) -> None:
    headers = (("event_id", b"\x00\xff"), ("repeated", b"1"), ("repeated", b"2"))
    log.append([NewRecord(TOPIC, b"k", b"x" * 2**20, headers), NewRecord(TOPIC, b"k", None)])
    large, tombstone = read_all(log, TOPIC)
    assert (large.key, large.value, large.headers) == (b"k", b"x" * 2**20, headers)
    assert tombstone.value is None
    assert abs(large.timestamp_ms / 1000 - now().timestamp()) < 60


def test_many_writers_leave_no_gap(open_log: Open, log: Log) -> None:
    def write(start: int) -> None:
        with open_log() as writer:
            for number in range(start, start + 30):
                writer.append([value(number)])

    threads = [threading.Thread(target=write, args=(start,)) for start in (0, 30, 60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers(log)) == list(range(90))
    assert log.ends(TOPIC)[PARTITION] == 90


def test_a_replay_begins_at_any_offset_or_time(log: Log) -> None:
    log.append([value(0), value(1)])
    threading.Event().wait(0.05)
    between = now()
    threading.Event().wait(0.05)
    log.append([value(2), value(3)])
    assert log.offset_at(TOPIC, PARTITION, between) == 2
    assert log.offset_at(TOPIC, PARTITION, between - timedelta(days=1)) == 0
    assert log.offset_at(TOPIC, PARTITION, now() + timedelta(hours=1)) == 4
    assert [record.offset for record in read_all(log, TOPIC, start={PARTITION: 3})] == [3]


def test_a_group_resumes_where_it_committed(open_log: Open, log: Log) -> None:
    assert log.committed("everloop.test", [TOPIC], [PARTITION]) == {PLACE: 0}
    log.commit("everloop.test", {PLACE: 3})
    log.commit("everloop.test", {(SPANS.name, 5): 7})
    with open_log() as other:
        assert other.committed("everloop.test", [TOPIC, SPANS.name], [PARTITION, 5]) == {
            PLACE: 3,
            (TOPIC, 5): 0,
            (SPANS.name, PARTITION): 0,
            (SPANS.name, 5): 7,
        }
        assert other.committed("everloop.other", [TOPIC], [PARTITION]) == {PLACE: 0}


def test_every_topic_has_its_partitions_and_begins_empty(log: Log) -> None:
    for topic in TOPICS.values():
        empty = dict.fromkeys(range(topic.partitions), 0)
        assert dict(log.ends(topic.name)) == dict(log.beginnings(topic.name)) == empty
        assert list(read_all(log, topic.name)) == []


def test_one_connection_reads_and_writes_many_topics(log: Log) -> None:
    log.append([NewRecord(name, b"k", name.encode()) for name in TOPICS])
    for name in TOPICS:
        assert [record.value for record in read_all(log, name)] == [name.encode()]
    places = {(ROUTES.name, partition): 0 for partition in range(ROUTES.partitions)} | {PLACE: 0}
    assert {record.topic for record in log.fetch(places, 10)} == {ROUTES.name, TOPIC}


def test_nothing_to_write_is_nothing_written(log: Log) -> None:
    assert log.append([]) == []
    assert sum(log.ends(TOPIC).values()) == 0


def test_more_than_a_client_buffers_is_written_whole_and_in_order(log: Log) -> None:
    large = b"x" * 2**20
    log.append([NewRecord(TOPIC, b"k", b"%d %s" % (number, large)) for number in range(48)])
    found = [int((record.value or b"").split()[0]) for record in read_all(log, TOPIC, batch=8)]
    assert found == list(range(48))
