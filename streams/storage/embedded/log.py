"""The embedded log: Kafka's topics, partitions, offsets, groups and compaction in SQLite."""

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Any, Self

import orjson

from schemas.clock import now, to_milliseconds
from schemas.topics import TOPICS
from streams.storage.embedded.database import (
    BUSY_TIMEOUT_S,
    Durability,
    open_database,
    snapshot,
    transaction,
)
from streams.storage.errors import LogUnavailableError, LogUnreadableError
from streams.storage.partitions import partition_of
from streams.storage.records import Headers, NewRecord, Record

# Followers that are a day behind must still see that a key was deleted.
TOMBSTONE_GRACE = timedelta(days=1)
# `PRAGMA data_version` reads one page in memory, so asking 200 times a second costs little.
_POLL_S = 0.005

PIECE_BYTES = 1 << 20
"""A longer value is written in pieces. `sqlite3` would copy it while it holds Python's lock, for
milliseconds in which no other thread runs.
"""


@dataclass(frozen=True, slots=True)
class _TopicRow:
    id: int
    partitions: int


class EmbeddedLog:
    """A log in an SQLite file in WAL mode, shared by any number of processes on one machine.

    Satisfies `streams.storage.log.Log`. An instance belongs to the thread that made it.

    Args:
        path: the file; created when it is not there.
        durability: what an append survives; `power` costs a disk flush each commit.
    """

    def __init__(
        self, path: Path, durability: Durability = "process", busy_timeout_s: float = BUSY_TIMEOUT_S
    ) -> None:
        self.path = path
        self.connection = open_database(path, durability, busy_timeout_s)
        self._topics: dict[str, _TopicRow] = {}
        self._data_version = -1

    def close(self) -> None:
        """Close the connection. Uncommitted changes are rolled back."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in one write transaction."""
        with _translate_errors(self.path), transaction(self.connection):
            yield

    def append(self, records: Sequence[NewRecord]) -> list[tuple[int, int]]:
        """Write records, all or none; return (partition, offset) of each."""
        if not records:
            return []
        with self.transaction():
            return self.append_within(records)

    def append_within(self, records: Sequence[NewRecord]) -> list[tuple[int, int]]:
        """Write records inside the caller's transaction."""
        timestamp_ms = to_milliseconds(now())
        ends: dict[tuple[int, int], int] = {}
        rows, positions, long = [], [], []
        for record in records:
            topic = self._topic(record.topic)
            partition = partition_of(record.key, topic.partitions)
            # Ends are read once a batch. The write lock is held, so nobody else moves them.
            offset = ends.get((topic.id, partition))
            if offset is None:
                offset = self._end(topic.id, partition)
            ends[topic.id, partition] = offset + 1
            positions.append((partition, offset))
            place = topic.id, partition, offset
            headers, value, room = _pack_headers(record.headers), record.value, 0
            if value is not None and len(value) > PIECE_BYTES:
                long.append((place, value))
                room = len(value)
                value = None
            rows.append((*place, timestamp_ms, record.key, room, room, value, headers))
        self.connection.executemany(
            'INSERT INTO records (topic, "partition", "offset", timestamp_ms, key, value, headers)'
            " VALUES (?, ?, ?, ?, ?, iif(? > 0, zeroblob(?), ?), ?)",
            rows,
        )
        for place, content in long:
            self._fill(place, content)
        self.connection.executemany(
            'INSERT INTO ends (topic, "partition", next) VALUES (?, ?, ?)'
            " ON CONFLICT DO UPDATE SET next = excluded.next",
            [(topic, partition, end) for (topic, partition), end in ends.items()],
        )
        return positions

    def _fill(self, position: Sequence[int], value: bytes) -> None:
        """Write a large value into the room that was made for it, in pieces."""
        (sequence,) = self.connection.execute(
            'SELECT sequence FROM records WHERE topic = ? AND "partition" = ? AND "offset" = ?',
            position,
        ).fetchone()
        content = memoryview(value)
        with self.connection.blobopen("records", "value", sequence) as blob:
            for begin in range(0, len(content), PIECE_BYTES):
                blob.write(content[begin : begin + PIECE_BYTES])

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        """Return up to `limit` records at or after `offset`, in order."""
        with _translate_errors(self.path):
            return list(self._select(topic, partition, offset, limit))

    def fetch(
        self, positions: Mapping[tuple[str, int], int], limit: int, wait_s: float = 0.0
    ) -> list[Record]:
        """Return up to `limit` records at or after the given offsets, in the order they were
        appended to the log.

        The order across partitions is the log's own, so a single reader sees the same order
        whenever it reads. All partitions are read from one snapshot: a record committed between two
        reads would otherwise come late.
        """
        deadline = time.monotonic() + wait_s
        while not (records := self._fetch(positions, limit)):
            left = deadline - time.monotonic()
            if left <= 0 or not self.wait_for_change(left):
                break
        return records

    def _fetch(self, positions: Mapping[tuple[str, int], int], limit: int) -> list[Record]:
        with _translate_errors(self.path), snapshot(self.connection):
            sources = [
                self._select(topic, partition, offset, limit)
                for (topic, partition), offset in positions.items()
            ]
            # Each source is ordered by offset, so also by sequence: a merge needs no sorting.
            return list(islice(merge(*sources, key=lambda record: record.sequence), limit))

    def _select(self, topic: str, partition: int, offset: int, limit: int) -> Iterator[Record]:
        rows = self.connection.execute(
            'SELECT "offset", timestamp_ms, key, value, headers, sequence FROM records'
            ' WHERE topic = ? AND "partition" = ? AND "offset" >= ? ORDER BY "offset" LIMIT ?',
            (self._topic(topic).id, partition, offset, limit),
        )
        for found, timestamp_ms, key, value, headers, sequence in rows:
            yield Record(
                topic,
                partition,
                found,
                timestamp_ms,
                key,
                value,
                _unpack_headers(headers),
                sequence,
            )

    def beginnings(self, topic: str) -> Mapping[int, int]:
        """Return the first offset still there, by partition."""
        row = self._topic(topic)
        # A partition without records begins where it ends.
        found: dict[int, int] = dict(
            self._rows(
                'SELECT "partition", min("offset") FROM records WHERE topic = ? GROUP BY'
                ' "partition"',
                row.id,
            )
        )
        ends = self.ends(topic)
        return {
            partition: found.get(partition, ends[partition]) for partition in range(row.partitions)
        }

    def ends(self, topic: str) -> Mapping[int, int]:
        """Return the offset the next record will get, by partition."""
        row = self._topic(topic)
        found: dict[int, int] = dict(
            self._rows('SELECT "partition", next FROM ends WHERE topic = ?', row.id)
        )
        return {partition: found.get(partition, 0) for partition in range(row.partitions)}

    def offset_at(self, topic: str, partition: int, time: datetime) -> int:
        """Return the offset of the first record appended at or after `time`, or the end."""
        found = self._rows(
            'SELECT min("offset") FROM records WHERE topic = ? AND "partition" = ? AND'
            " timestamp_ms >= ?",
            self._topic(topic).id,
            partition,
            to_milliseconds(time),
        )[0][0]
        return self.ends(topic)[partition] if found is None else int(found)

    def committed(
        self, group: str, topics: Iterable[str], partitions: Iterable[int]
    ) -> dict[tuple[str, int], int]:
        """Return the next offset of a group, by topic and partition; 0 if it has read nothing."""
        wanted = list(partitions)
        positions: dict[tuple[str, int], int] = {}
        for topic in topics:
            row = self._topic(topic)
            found: dict[int, int] = dict(
                self._rows(
                    'SELECT "partition", next FROM offsets WHERE consumer_group = ? AND topic = ?',
                    group,
                    row.id,
                )
            )
            positions |= {
                (topic, partition): found.get(partition, 0)
                for partition in wanted
                if partition < row.partitions
            }
        return positions

    def unread(self, positions: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
        """Return an upper bound of the records at or after the given offsets; 0 means that there
        are none.

        It is counted from the first record that is still there: retention and compaction delete
        records, and what is deleted can never be read.
        """
        ends = {topic: self.ends(topic) for topic, _ in positions}
        return {
            (topic, partition): ends[topic][partition]
            - self._first_from(topic, partition, offset, ends[topic][partition])
            for (topic, partition), offset in positions.items()
        }

    def _first_from(self, topic: str, partition: int, offset: int, end: int) -> int:
        """Return the offset of the first record at or after `offset`; `end` if there is none."""
        found = self._rows(
            'SELECT min("offset") FROM records'
            ' WHERE topic = ? AND "partition" = ? AND "offset" >= ?',
            self._topic(topic).id,
            partition,
            offset,
        )[0][0]
        return end if found is None else int(found)

    def commit(self, group: str, positions: Mapping[tuple[str, int], int]) -> None:
        """Store a group's next offsets."""
        with self.transaction():
            self.commit_within(group, positions)

    def state(self, group: str, key: str) -> bytes | None:
        """Return a processor's state for a key as it was last committed; None if there is none."""
        rows = self._rows(
            "SELECT value FROM states WHERE consumer_group = ? AND key = ?", group, key
        )
        return rows[0][0] if rows else None

    def commit_within(self, group: str, positions: Mapping[tuple[str, int], int]) -> None:
        """Store a group's next offsets inside the caller's transaction."""
        self.connection.executemany(
            'INSERT INTO offsets (consumer_group, topic, "partition", next) VALUES (?, ?, ?, ?)'
            " ON CONFLICT DO UPDATE SET next = excluded.next",
            [
                (group, self._topic(topic).id, partition, offset)
                for (topic, partition), offset in positions.items()
            ],
        )

    def wait_for_change(self, timeout_s: float) -> bool:
        """Return True as soon as another connection has committed, or False after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            version = self._rows("PRAGMA data_version")[0][0]
            # `data_version` changes when another connection commits, never by our own commits.
            if version != self._data_version:
                self._data_version = version
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)

    def delete_before(self, positions: Mapping[tuple[str, int], int]) -> None:
        """Delete the records before the given offsets. Offsets of what remains do not change."""
        with self.transaction():
            self.connection.executemany(
                'DELETE FROM records WHERE topic = ? AND "partition" = ? AND "offset" < ?',
                [
                    (self._topic(topic).id, partition, offset)
                    for (topic, partition), offset in positions.items()
                ],
            )

    def used_bytes(self) -> int:
        """Return the used bytes of the file. Deleted space is used again before the file grows."""
        pages, free, size = (
            self._rows(f"PRAGMA {name}")[0][0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        # SQLite does not give free pages back to the disk.
        return int((pages - free) * size)

    def enforce_retention(self, at: datetime) -> int:
        """Delete records that are past the retention of their topic. In compacted topics, delete
        all but the last record of each key.

        Returns:
            How many records were deleted. Offsets of what remains do not change.
        """
        deleted = 0
        for topic in TOPICS.values():
            row = self._topic(topic.name)
            if topic.cleanup == "compact":
                deleted += self._compact(row.id, at)
            elif topic.retention is not None:
                cutoff = to_milliseconds(at - topic.retention)
                deleted += self._delete(
                    "DELETE FROM records WHERE topic = ? AND timestamp_ms < ?", row.id, cutoff
                )
        return deleted

    def _compact(self, topic: int, at: datetime) -> int:
        # Within a partition only: records of one key are all in the same partition.
        superseded = self._delete(
            "DELETE FROM records WHERE topic = ? AND key IS NOT NULL AND sequence < (SELECT"
            " max(sequence) FROM"
            ' records AS newer WHERE newer.topic = records.topic AND newer."partition" ='
            ' records."partition"'
            " AND newer.key = records.key)",
            topic,
        )
        # A tombstone that is deleted at once would never be seen by a follower that is behind.
        cutoff = to_milliseconds(at - TOMBSTONE_GRACE)
        return superseded + self._delete(
            "DELETE FROM records WHERE topic = ? AND value IS NULL AND timestamp_ms < ?",
            topic,
            cutoff,
        )

    def _delete(self, statement: str, *parameters: object) -> int:
        with self.transaction():
            return self.connection.execute(statement, parameters).rowcount

    def _rows(self, statement: str, *parameters: object) -> list[Any]:
        with _translate_errors(self.path):
            return self.connection.execute(statement, parameters).fetchall()

    def _end(self, topic: int, partition: int) -> int:
        # Of `ends`, not of the records: retention may have deleted them, and an offset is never
        # used again.
        row = self.connection.execute(
            'SELECT next FROM ends WHERE topic = ? AND "partition" = ?', (topic, partition)
        ).fetchone()
        return int(row[0]) if row else 0

    def _topic(self, name: str) -> _TopicRow:
        if name not in self._topics:
            row = self.connection.execute(
                "SELECT id, partitions FROM topics WHERE name = ?", (name,)
            ).fetchone()
            if row is None:
                raise KeyError(f"the log has no topic {name!r}")
            self._topics[name] = _TopicRow(*row)
        return self._topics[name]


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours.

    A locked, full or vanished disk may come back; a damaged file will not.
    """
    try:
        yield
    except (sqlite3.OperationalError, sqlite3.InterfaceError) as error:
        raise LogUnavailableError(f"the log {path} cannot be used now: {error}") from error
    except sqlite3.DatabaseError as error:
        raise LogUnreadableError(f"the log {path} is damaged: {error}") from error


def _pack_headers(headers: Headers) -> bytes | None:
    if not headers:
        return None
    # Latin-1 gives each byte one character, so any bytes survive JSON.
    return orjson.dumps([[name, value.decode("latin-1")] for name, value in headers])


def _unpack_headers(headers: bytes | None) -> Headers:
    if headers is None:
        return ()
    return tuple((name, value.encode("latin-1")) for name, value in orjson.loads(headers))
