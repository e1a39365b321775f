"""Records: what lies on a log, and what is about to."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Self

from schemas.envelope import AnyEvent
from schemas.serialization import decode, encode, joined
from schemas.topics import Topic

Headers = tuple[tuple[str, bytes], ...]

BATCH_MAX_BYTES = 256 * 1024

MAX_RECORD_BYTES = 24 * 1024 * 1024
"""Largest record: the largest request the gateway takes, and its answer. A dead letter may be twice
as large.
"""

REWARD_REVISION_HEADER = "reward-revision"
"""Header of a trajectory: its reward revision in decimal, so that who waits for a reward need not
decode it.
"""

REPLAYED_HEADER = "replayed-from"
"""Header of a dead letter that was put back: where the dead letter lies."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it lies on the log.

    Attributes:
        offset: position in its partition, from 0; never reused.
        timestamp_ms: when it was appended, milliseconds since the unix epoch.
        sequence: position in the whole log, for logs that keep one; 0 otherwise. Orders records of
            several partitions.
        index: which of the record's events is meant, from 0.
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
        """Where it lies, for messages and identifiers."""
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
        most_bytes: of a record that several events share; a larger event has a record of its own.
    """
    records: list[NewRecord] = []
    for (topic, key), neighbours in groupby(outgoing, lambda event: (event.topic, event.key)):
        values: list[bytes] = []
        size = 0
        for event in neighbours:
            if values and (not topic.batched or size + len(event.value) > most_bytes):
                records.append(NewRecord(topic.name, key.encode(), joined(values)))
                values, size = [], 0
            values.append(event.value)
            size += len(event.value)
        records.append(NewRecord(topic.name, key.encode(), joined(values)))
    return records
