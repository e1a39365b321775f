"""Records: those on a log, and those to append."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Self

from schemas.envelope import AnyEvent
from schemas.serialization import decode, encode, join_events
from schemas.topics import Topic

Headers = tuple[tuple[str, bytes], ...]

# Events that share a record are read and written together; larger records would cost memory and
# gain nothing.
BATCH_MAX_BYTES = 256 * 1024

MAX_RECORD_BYTES = 24 * 1024 * 1024
"""Largest record: the largest request that the gateway takes, with its answer.

A dead letter may be twice as large.
"""

REWARD_REVISION_HEADER = "reward-revision"
"""Header of a trajectory: its reward revision in decimal, so that a reader need not decode the
event.
"""

REPLAYED_HEADER = "replayed-from"
"""Header of a record that was a dead letter: the position of the dead letter."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record on the log.

    Attributes:
        offset: position in its partition, from 0; never used again.
        timestamp_ms: when it was appended, in milliseconds since the unix epoch.
        sequence: position in the whole log, which orders records of several partitions; 0 on logs
            without one.
        index: which event of the record is meant, from 0.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    sequence: int = 0
    index: int = 0

    @property
    def position(self) -> str:
        """Topic, partition and offset, for messages and identifiers."""
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A record to append. A value of None is a tombstone: compaction forgets the key."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event on its way to a topic, encoded."""

    topic: Topic
    key: str
    event_id: str
    value: bytes
    headers: Headers = ()

    @classmethod
    def of(cls, topic: Topic, key: str, event: AnyEvent) -> Self:
        """Encode an event."""
        return cls(topic, key, event.event_id, encode(event))

    @property
    def event(self) -> AnyEvent:
        """The event."""
        return decode(self.topic.event, self.value)

    def record(self) -> NewRecord:
        """Return it as a record of its own."""
        return NewRecord(self.topic.name, self.key.encode(), self.value, self.headers)


def share_records(
    outgoing: Iterable[Outgoing], most_bytes: int = BATCH_MAX_BYTES
) -> list[NewRecord]:
    """Return records in order; neighbours of one key share a record where their topic allows it.

    Args:
        most_bytes: most bytes of a shared record. A larger event gets a record of its own.
    """
    records: list[NewRecord] = []
    for (topic, key), neighbours in groupby(outgoing, lambda event: (event.topic, event.key)):
        values: list[bytes] = []
        size = 0
        for event in neighbours:
            if values and (not topic.batched or size + len(event.value) > most_bytes):
                records.append(NewRecord(topic.name, key.encode(), join_events(values)))
                values, size = [], 0
            values.append(event.value)
            size += len(event.value)
        records.append(NewRecord(topic.name, key.encode(), join_events(values)))
    return records
