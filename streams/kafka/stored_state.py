"""A key's state as it is kept on Kafka: with what it contains, its deadline and its partition."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

import orjson

from streams.records import SOURCE_HEADER, Record

TABLE = "states"


def changelog_of(group: str) -> str:
    """Return the name of the topic that keeps a group's states; Faust derives it from the app and the table."""
    return f"{group}-{TABLE}-changelog"


def source_of(record: Record, index: int) -> tuple[str, bytes]:
    """Return the header for the output number `index` of a record."""
    return SOURCE_HEADER, f"{_place(record)}:{record.offset}:{index}".encode()


@dataclass(frozen=True)
class StoredState:
    """State bytes with what makes at-least-once delivery count once.

    A record may come twice in two ways. Kafka delivers it again after a crash: `contained` knows its offset. Or the
    processor before wrote it again, at a new offset, because it died before it noted that it had: `made_from` knows
    what it was made from. A processor reads each partition in order and waits for every write, so one position for
    each source partition says it all.

    Attributes:
        value: the processor's encoded state; None where it remembers nothing of the key.
        contained: `topic:partition` to the last offset that went into the state.
        made_from: `topic:partition` to the last (offset, index) whose output went into the state.
        deadline: when the processor wants to hear of the key again.
        partition: of the key.
    """

    value: bytes | None = None
    contained: Mapping[str, int] = field(default_factory=dict)
    made_from: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    deadline: datetime | None = None
    partition: int = 0

    def contains(self, record: Record) -> bool:
        """Return whether a record, or the one it repeats, went into this state already."""
        if record.offset <= self.contained.get(_place(record), -1):
            return True
        source = _source(record)
        return source is not None and source[1] <= self.made_from.get(source[0], (-1, -1))

    def after(self, record: Record, value: bytes | None, deadline: datetime | None) -> Self:
        """Return the state after a record."""
        source = _source(record)
        return type(self)(
            value,
            {**self.contained, _place(record): record.offset},
            {**self.made_from, source[0]: source[1]} if source else self.made_from,
            deadline,
            record.partition,
        )

    def after_deadline(self, value: bytes | None, deadline: datetime | None) -> Self:
        """Return the state after its deadline. What it contains stays: a repeated record must still be known."""
        return type(self)(value, self.contained, self.made_from, deadline, self.partition)

    def encode(self) -> bytes:
        """Return a line of JSON, then the state's own bytes."""
        header: dict[str, Any] = {
            "contained": self.contained,
            "made_from": self.made_from,
            "deadline": self.deadline,
            "partition": self.partition,
            "empty": self.value is None,
        }
        return orjson.dumps(header, option=orjson.OPT_SORT_KEYS) + b"\n" + (self.value or b"")

    @classmethod
    def decode(cls, stored: bytes | None) -> Self:
        """Return what `encode` wrote; None is the state of a key never seen."""
        if stored is None:
            return cls()
        line, _, value = stored.partition(b"\n")
        header = orjson.loads(line)
        return cls(
            None if header["empty"] else value,
            header["contained"],
            {place: (offset, index) for place, (offset, index) in header["made_from"].items()},
            datetime.fromisoformat(header["deadline"]) if header["deadline"] else None,
            header["partition"],
        )


def _place(record: Record) -> str:
    return f"{record.topic}:{record.partition}"


def _source(record: Record) -> tuple[str, tuple[int, int]] | None:
    """Return what a record was made from, None for one that no processor made."""
    for name, value in record.headers:
        if name == SOURCE_HEADER:
            place, offset, index = value.decode().rsplit(":", 2)
            return place, (int(offset), int(index))
    return None
