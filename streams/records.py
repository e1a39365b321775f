"""Records: what lies on a log, and what is about to."""

from dataclasses import dataclass

from schemas.envelope import AnyEvent
from schemas.serialization import encode
from schemas.topics import Topic

Headers = tuple[tuple[str, bytes], ...]

SOURCE_HEADER = "source"
"""Header of a processor's output on Kafka: `topic:partition:offset:index` of the record it was made from."""

REPLAYED_HEADER = "replayed-from"
"""Header of a dead letter that was put back: where the dead letter lies."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it lies on the log.

    Attributes:
        offset: position in its partition, from 0; never reused.
        timestamp_ms: when it was appended, milliseconds since the unix epoch.
        sequence: position in the whole log, for logs that keep one; 0 otherwise. Orders records of several partitions.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    sequence: int = 0

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
    """An event on its way to a topic."""

    topic: Topic
    key: str
    event: AnyEvent

    def record(self) -> NewRecord:
        """Return it as bytes; the event id is repeated as a header, so repeats are found without decoding."""
        headers = (("event_id", self.event.event_id.encode()),)
        return NewRecord(self.topic.name, self.key.encode(), encode(self.event), headers)
