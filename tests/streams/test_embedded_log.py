"""The embedded log keeps what Kafka keeps: order, offsets, headers, retention, compaction."""

import random
import sqlite3
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.clock import now
from schemas.topics import REWARDS, ROUTES, SPANS
from streams.storage.embedded.log import PIECE_BYTES, TOMBSTONE_GRACE, EmbeddedLog
from streams.storage.errors import LogUnavailableError, LogUnreadableError
from streams.storage.log import read_all
from streams.storage.partitions import partition_of
from streams.storage.records import NewRecord

TOPIC = REWARDS.name


def value(number: int, key: bytes = b"k") -> NewRecord:
    return NewRecord(TOPIC, key, str(number).encode())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.binary(max_size=8), min_size=1, max_size=30))
def test_a_fetch_over_partitions_gives_the_order_of_writing(
    tmp_path_factory: pytest.TempPathFactory, keys: list[bytes]
) -> None:
    with EmbeddedLog(tmp_path_factory.mktemp("log") / "log.db") as log:
        for number, key in enumerate(keys):
            log.append([value(number, key)])
        everything = {(TOPIC, partition): 0 for partition in range(REWARDS.partitions)}
        assert [int(record.value or b"") for record in log.fetch(everything, 1000)] == list(
            range(len(keys))
        )
        first = log.fetch(everything, 3)
        assert [int(record.value or b"") for record in first] == list(range(min(3, len(keys))))


def test_keys_headers_and_large_values_come_back_as_they_went(log: EmbeddedLog) -> None:
    headers = (("event_id", b"\x00\xff"), ("repeated", b"1"), ("repeated", b"2"))
    log.append([NewRecord(TOPIC, None, b"x" * 2**20, headers), NewRecord(TOPIC, b"\xff", None)])
    (large,) = log.read(TOPIC, 0, 0, 1)
    assert (large.key, large.value, large.headers) == (None, b"x" * 2**20, headers)
    (tombstone,) = log.read(TOPIC, partition_of(b"\xff", REWARDS.partitions), 0, 1)
    assert tombstone.value is None


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
def test_a_value_of_any_size_comes_back_as_it_went(log: EmbeddedLog, size: int) -> None:
    content = random.Random(size).randbytes(size)
    records = [value(1), NewRecord(TOPIC, b"k", content), value(2), NewRecord(TOPIC, b"k", None)]
    log.append(records)
    found = log.read(TOPIC, partition_of(b"k", REWARDS.partitions), 0, 10)
    assert [record.value for record in found] == [b"1", content, b"2", None]


def test_a_record_that_cannot_be_written_takes_none_of_its_batch_with_it(log: EmbeddedLog) -> None:
    with pytest.raises(KeyError, match="no topic"):
        log.append([value(1), NewRecord("everloop.unknown", b"k", b"v")])
    assert sum(log.ends(TOPIC).values()) == 0


def test_several_processes_write_to_one_log_without_gaps(tmp_path: Path) -> None:
    def write(start: int) -> None:
        with EmbeddedLog(tmp_path / "log.db") as log:
            for number in range(start, start + 100):
                log.append([value(number)])

    threads = [threading.Thread(target=write, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with EmbeddedLog(tmp_path / "log.db") as log:
        records = list(read_all(log, TOPIC))
        assert [record.offset for record in records] == list(range(300))
        assert {int(record.value or b"") for record in records} == set(range(300))


def test_retention_deletes_what_is_old_and_moves_no_offset(log: EmbeddedLog) -> None:
    record = NewRecord(SPANS.name, b"k", b"old")
    log.append([record, record])
    assert SPANS.retention is not None
    assert log.enforce_retention(now() + SPANS.retention / 2) == 0
    assert log.enforce_retention(now() + SPANS.retention + timedelta(seconds=1)) == 2
    partition = partition_of(b"k", SPANS.partitions)
    assert log.beginnings(SPANS.name)[partition] == log.ends(SPANS.name)[partition] == 2
    log.append([record])
    assert [found.offset for found in read_all(log, SPANS.name)] == [2]


def test_compaction_keeps_the_last_record_of_each_key(log: EmbeddedLog) -> None:
    log.append(
        [
            NewRecord(ROUTES.name, key, value)
            for key, value in ((b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"b", None))
        ]
    )
    log.enforce_retention(now())
    assert {(record.key, record.value) for record in read_all(log, ROUTES.name)} == {
        (b"a", b"2"),
        (b"b", None),
    }
    log.enforce_retention(now() + TOMBSTONE_GRACE + timedelta(seconds=1))
    assert [record.key for record in read_all(log, ROUTES.name)] == [b"a"]


def test_a_change_by_another_connection_is_noticed(log: EmbeddedLog) -> None:
    log.wait_for_change(0)
    assert not log.wait_for_change(0.01)
    with EmbeddedLog(log.path) as other:
        other.append([value(1)])
    assert log.wait_for_change(1.0)


def test_what_is_no_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text(
        "this is no database, it is a text that is long enough to be one" * 20
    )
    with pytest.raises(LogUnreadableError, match="not an Everloop log"):
        EmbeddedLog(tmp_path / "text.db")
    foreign = sqlite3.connect(tmp_path / "foreign.db")
    foreign.execute("CREATE TABLE songs (title TEXT)")
    foreign.close()
    with pytest.raises(LogUnreadableError, match="another program"):
        EmbeddedLog(tmp_path / "foreign.db")
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(LogUnreadableError, match="newer Everloop"):
        EmbeddedLog(tmp_path / "newer.db")
    with pytest.raises(LogUnavailableError, match="cannot open"):
        EmbeddedLog(tmp_path / "text.db" / "log.db")


def test_a_locked_log_is_unavailable_not_broken(tmp_path: Path) -> None:
    with (
        EmbeddedLog(tmp_path / "log.db", busy_timeout_s=0.05) as log,
        EmbeddedLog(tmp_path / "log.db") as other,
    ):
        with other.transaction(), pytest.raises(LogUnavailableError, match="locked"):
            log.append([value(1)])
        log.append([value(1)])
        assert sum(log.ends(TOPIC).values()) == 1


def test_fetch_never_passes_over_what_is_committed_while_it_reads(log: EmbeddedLog) -> None:
    stop = threading.Event()

    def write() -> None:
        with EmbeddedLog(log.path) as writer:
            number = 0
            while not stop.is_set():
                writer.append([NewRecord(SPANS.name, str(number).encode(), b"x")])
                number += 1

    thread = threading.Thread(target=write)
    thread.start()
    positions = {(SPANS.name, partition): 0 for partition in range(SPANS.partitions)}
    seen: list[int] = []
    try:
        while len(seen) < 5000:
            records = log.fetch(positions, 500)
            positions |= {(record.topic, record.partition): record.offset + 1 for record in records}
            seen += [record.sequence for record in records]
    finally:
        stop.set()
        thread.join()
    assert seen == sorted(seen)


def test_what_retention_deleted_is_not_waited_for(log: EmbeddedLog) -> None:
    key = b"k"
    partition = partition_of(key, SPANS.partitions)
    log.append([NewRecord(SPANS.name, key, b"{}") for _ in range(10)])
    assert SPANS.retention is not None
    log.enforce_retention(now() + SPANS.retention + timedelta(seconds=1))
    positions = log.committed("new", [SPANS.name], range(SPANS.partitions))
    assert sum(log.unread(positions).values()) == 0
    log.append([NewRecord(SPANS.name, key, b"{}")])
    assert log.unread(positions)[SPANS.name, partition] == 1
