"""The states of one partition of a consumer group, in a compacted topic with one writer at a time.

A batch is one transaction: the events it writes, the states of the keys it changed, and the offsets
that these contain. Readers of committed records see all of it or nothing. So a batch that a crash
cut off is made again without a trace, even if the topics are read in another order then.

A worker that takes a partition first shuts out the earlier writer: Kafka fences the older producer
of a transactional id. Then it reads the states. An earlier worker may have been paused, and may
still believe that the partition is its own. It cannot write. Its commit fails, it reads the states
anew, and does the batch again.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, Protocol, Self, TypeVar

import orjson

from schemas.clock import to_milliseconds
from streams.processing.batch import StateChange
from streams.processing.processor import Processor
from streams.storage.kafka.layout import STATE_PREFIX, state_key
from streams.storage.records import Headers, NewRecord, Record

S = TypeVar("S")
POSITIONS_KEY = b"positions"
DEADLINE_HEADER = "deadline"
CACHED = 1024  # decoded states of one partition; the others are kept as bytes


class OutdatedError(Exception):
    """The states that were read may be outdated. Read them again.

    Another worker has taken the partition, or nobody knows whether a write succeeded.
    """


class Changelog(Protocol):
    """The partition of the topic that keeps a partition's states."""

    async def load(self) -> Sequence[Record]:
        """Shut out every earlier writer. Return all that is stored, the oldest first."""
        ...

    async def commit(self, states: Sequence[NewRecord], outputs: Sequence[NewRecord]) -> None:
        """Write states to the changelog and outputs to their topics, all or none.

        Raises:
            OutdatedError: none was written, or it is not known whether they were. Load again.
        """
        ...

    async def close(self) -> None:
        """Release the connection."""
        ...


@dataclass
class Positions:
    """How far a partition's records went into its states.

    Attributes:
        contained: topic to the last offset taken. Kafka delivers a record again after a crash.
    """

    contained: dict[str, int] = field(default_factory=dict)

    def take(self, record: Record) -> bool:
        """Count a record as taken. Return False if it was taken before."""
        if record.offset < self.next_of(record.topic):
            return False
        self.contained[record.topic] = record.offset
        return True

    def next_of(self, topic: str) -> int:
        """Return the offset after the last one taken of a topic."""
        return self.contained.get(topic, -1) + 1

    def copy(self) -> Self:
        """Return positions that change apart from these."""
        return type(self)(dict(self.contained))

    def encode(self) -> bytes:
        """Return them as JSON."""
        return orjson.dumps({"contained": self.contained}, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def decode(cls, value: bytes | None) -> Self:
        """Return what `encode` wrote."""
        return cls(orjson.loads(value or b'{"contained": {}}')["contained"])


class PartitionStates(Generic[S]):
    """One partition's states, all of them in memory as bytes, the last used ones as objects too."""

    def __init__(
        self, processor: Processor[S], changelog: Changelog, stored: Iterable[Record]
    ) -> None:
        self._processor = processor
        self._changelog = changelog
        self._values: dict[str, bytes] = {}
        self._deadlines: dict[str, int] = {}
        self._queue: list[tuple[int, str]] = []
        self._objects: OrderedDict[str, S] = OrderedDict()
        self.positions = Positions()
        for record in stored:
            self._take_up(record)

    @classmethod
    async def open_partition(cls, processor: Processor[S], changelog: Changelog) -> Self:
        """Shut out earlier writers of the partition and read its states."""
        return cls(processor, changelog, await changelog.load())

    def get(self, key: str) -> S | None:
        """Return a key's stored state, None where there is none."""
        if key in self._objects:
            self._objects.move_to_end(key)
            return self._objects[key]
        value = self._values.get(key)
        return None if value is None else self._processor.decode_state(value)

    def clear(self) -> None:
        """Forget the objects."""
        self._objects.clear()

    def due(self, time: datetime, limit: int) -> list[str]:
        """Return keys whose deadline has passed, the earliest first.

        Each key is returned once. Process its deadline, or open the partition anew.
        """
        passed: list[str] = []
        while self._queue and len(passed) < limit and self._queue[0][0] <= to_milliseconds(time):
            # The queue keeps deadlines that were changed since. Only the present one counts.
            deadline, key = heapq.heappop(self._queue)
            if self._deadlines.get(key) == deadline and key not in passed:
                passed.append(key)
        return passed

    async def commit(
        self,
        changes: Mapping[str, StateChange[S]],
        positions: Positions,
        outputs: Sequence[NewRecord],
    ) -> None:
        """Store changed states and positions, and write outputs, together.

        Raises:
            OutdatedError: see `Changelog.commit`.
        """
        records = [
            _state_record(self._processor, key, change)
            for key, change in changes.items()
            # A key that came and went within one batch was never stored, so no tombstone is needed.
            if change.state is not None or key in self._values
        ]
        records.append(NewRecord("", POSITIONS_KEY, positions.encode()))
        await self._changelog.commit(records, outputs)
        # Memory changes only now: after an OutdatedError it must still say what is stored.
        for key, change in changes.items():
            self._objects.pop(key, None)
            if change.state is not None:
                self._objects[key] = change.state
        while len(self._objects) > CACHED:
            self._objects.popitem(last=False)
        for record in records:
            self._take_up(record)

    async def close(self) -> None:
        """Release the changelog."""
        await self._changelog.close()

    def _take_up(self, record: Record | NewRecord) -> None:
        if record.key == POSITIONS_KEY:
            self.positions = Positions.decode(record.value)
            return
        key = (record.key or b"").removeprefix(STATE_PREFIX).decode()
        self._deadlines.pop(key, None)
        if record.value is None:
            self._values.pop(key, None)
            return
        self._values[key] = record.value
        for name, value in record.headers:
            if name == DEADLINE_HEADER:
                self._deadlines[key] = int(value)
                # An older entry of the key stays; `due` skips it. To search the heap for it would
                # cost more.
                heapq.heappush(self._queue, (int(value), key))


def _state_record(processor: Processor[S], key: str, change: StateChange[S]) -> NewRecord:
    if change.state is None:
        return NewRecord("", state_key(key), None)
    headers: Headers = ()
    if change.deadline is not None:
        headers = ((DEADLINE_HEADER, str(to_milliseconds(change.deadline)).encode()),)
    return NewRecord("", state_key(key), processor.encode_state(change.state), headers)
