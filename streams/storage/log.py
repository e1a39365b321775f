"""The contract of a log: append, read, and where partitions begin and end."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol, Self, TypeVar

import structlog

from schemas.envelope import AnyEvent
from schemas.serialization import UndecodableError, decode_all
from schemas.topics import Topic
from streams.storage.records import NewRecord, Record

E = TypeVar("E", bound=AnyEvent)
logger = structlog.get_logger(__name__)


class Log(Protocol):
    """An ordered, partitioned, durable log.

    Every method may raise LogUnavailableError. An instance belongs to one thread.
    """

    def append(self, records: Sequence[NewRecord]) -> list[tuple[int, int]]:
        """Write records; return (partition, offset) of each. All are durable when this returns.

        After an error the embedded log has none of them; Kafka may have some.
        """
        ...

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        """Return up to `limit` records at or after `offset`, in order. An empty list means the
        partition's end.
        """
        ...

    def fetch(
        self, positions: Mapping[tuple[str, int], int], limit: int, wait_s: float = 0.0
    ) -> list[Record]:
        """Return up to `limit` records at or after the given offsets, each partition in order.

        Returns none only when nothing lies after the offsets and nothing has come for `wait_s`.
        """
        ...

    def beginnings(self, topic: str) -> Mapping[int, int]:
        """Return the first offset still there, by partition."""
        ...

    def ends(self, topic: str) -> Mapping[int, int]:
        """Return the offset the next record will get, by partition."""
        ...

    def offset_at(self, topic: str, partition: int, time: datetime) -> int:
        """Return the offset of the first record appended at or after `time`, or the end."""
        ...

    def committed(
        self, group: str, topics: Iterable[str], partitions: Iterable[int]
    ) -> dict[tuple[str, int], int]:
        """Return the next offset of a group, by topic and partition; 0 if it has read nothing."""
        ...

    def unread(self, positions: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
        """Return how many records are at or after the given offsets. It may be too many, but 0 is
        exact.

        Offsets alone do not say it: on Kafka, transactions' markers take some and are no records.
        """
        ...

    def commit(self, group: str, positions: Mapping[tuple[str, int], int]) -> None:
        """Store a group's next offsets."""
        ...

    def state(self, group: str, key: str) -> bytes | None:
        """Return a processor's state for a key as it was last stored; None if there is none."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def close(self) -> None:
        """Release the connection."""
        ...


def read_all(
    log: Log, topic: str, *, start: Mapping[int, int] | None = None, batch: int = 500
) -> Iterator[Record]:
    """Yield a topic's records up to the ends it has now, partition by partition, in bounded memory.

    Args:
        start: first offset by partition; partitions not named start at their beginning.
    """
    beginnings = log.beginnings(topic)
    for partition, end in log.ends(topic).items():
        # Retention may have deleted what lies before the beginning.
        offset = max((start or {}).get(partition, 0), beginnings[partition])
        while offset < end:
            records = [
                record
                for record in log.read(topic, partition, offset, batch)
                if record.offset < end
            ]
            # Compaction and retention may delete the rest while this reads.
            if not records:
                break
            yield from records
            offset = records[-1].offset + 1


def read_events(log: Log, topic: Topic, kind: type[E]) -> Iterator[tuple[Record, E]]:
    """Yield a topic's events up to the ends it has now, each with its record.

    A record that cannot be read is logged and skipped: one bad record must not hide the others.
    """
    for record in read_all(log, topic.name):
        if record.value is None:
            continue  # the mark of a compacted topic that a key is gone
        try:
            events = decode_all(kind, record.value)
        except UndecodableError as error:
            logger.error("record skipped", record=record.position, error=str(error))
            continue
        for event in events:
            yield record, event
