"""A key's state as it is kept on Kafka: with the offsets it contains and its deadline."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import orjson

from streams.records import Record


@dataclass(frozen=True)
class StoredState:
    """State bytes with what makes at-least-once delivery count once.

    Attributes:
        value: the processor's encoded state; None where it remembers nothing of the key.
        contained: `topic:partition` to the last offset that went into the state.
        deadline: when the processor wants to hear of the key again.
    """

    value: bytes | None = None
    contained: Mapping[str, int] = field(default_factory=dict)
    deadline: datetime | None = None

    def contains(self, record: Record) -> bool:
        """Return whether a record went into this state already."""
        return record.offset <= self.contained.get(_place(record), -1)

    def after(self, record: Record, value: bytes | None, deadline: datetime | None) -> "StoredState":
        """Return the state after a record."""
        return StoredState(value, {**self.contained, _place(record): record.offset}, deadline)

    def encode(self) -> bytes:
        """Return a line of JSON, then the state's own bytes."""
        header = {
            "contained": self.contained,
            "deadline": self.deadline,
            "empty": self.value is None,
        }
        return orjson.dumps(header, option=orjson.OPT_SORT_KEYS) + b"\n" + (self.value or b"")

    @classmethod
    def decode(cls, stored: bytes | None) -> "StoredState":
        """Return what `encode` wrote; None is the state of a key never seen."""
        if stored is None:
            return cls()
        line, _, value = stored.partition(b"\n")
        header = orjson.loads(line)
        deadline = datetime.fromisoformat(header["deadline"]) if header["deadline"] else None
        return cls(None if header["empty"] else value, header["contained"], deadline)


def _place(record: Record) -> str:
    return f"{record.topic}:{record.partition}"
