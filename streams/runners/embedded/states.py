"""The states of a consumer group: cached as objects, stored in the transaction of their offsets."""

from collections import OrderedDict
from collections.abc import Iterable
from datetime import datetime
from typing import Generic, TypeVar

from schemas.clock import to_milliseconds
from streams.processing.batch import Key, StateChange
from streams.processing.processor import Processor
from streams.storage.embedded.log import EmbeddedLog

S = TypeVar("S")


class CachedStates(Generic[S]):
    """Reads states through a bounded cache of the last used keys."""

    def __init__(self, log: EmbeddedLog, processor: Processor[S], capacity: int = 4096) -> None:
        self._log = log
        self._processor = processor
        self._capacity = capacity
        self._cache: OrderedDict[Key, S] = OrderedDict()

    def get(self, key: Key) -> S | None:
        """Return the committed state of a key; None if there is none."""
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        row = self._log.connection.execute(
            'SELECT value FROM states WHERE consumer_group = ? AND "partition" = ? AND key = ?',
            (self._processor.group, *key),
        ).fetchone()
        return self._processor.decode_state(row[0]) if row else None

    def due(self, partitions: Iterable[int], now: datetime, limit: int) -> list[Key]:
        """Return keys of these partitions whose deadline has passed, the earliest first."""
        rows = self._log.connection.execute(
            'SELECT "partition", key FROM states WHERE consumer_group = ? AND deadline_ms <= ?'
            ' ORDER BY deadline_ms, "partition", key LIMIT ?',
            (self._processor.group, to_milliseconds(now), limit),
        )
        held = set(partitions)
        return [(partition, key) for partition, key in rows if partition in held]

    def write_within(self, changes: dict[Key, StateChange[S]]) -> None:
        """Store changed states inside the caller's transaction."""
        kept = [(key, change) for key, change in changes.items() if change.state is not None]
        self._log.connection.executemany(
            'DELETE FROM states WHERE consumer_group = ? AND "partition" = ? AND key = ?',
            [
                (self._processor.group, *key)
                for key, change in changes.items()
                if change.state is None
            ],
        )
        self._log.connection.executemany(
            'INSERT INTO states (consumer_group, "partition", key, value, deadline_ms) VALUES'
            " (?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET value = excluded.value, deadline_ms = excluded.deadline_ms",
            [
                (
                    self._processor.group,
                    *key,
                    self._processor.encode_state(change.state),
                    to_milliseconds(change.deadline) if change.deadline else None,
                )
                for key, change in kept
                if change.state is not None
            ],
        )

    def remember(self, changes: dict[Key, StateChange[S]]) -> None:
        """Add committed changes to the cache."""
        for key, change in changes.items():
            # Taken out first, so that the key moves to the end: the cache drops the least recent.
            self._cache.pop(key, None)
            if change.state is not None:
                self._cache[key] = change.state
        while len(self._cache) > self._capacity:
            self._cache.popitem(last=False)

    def clear(self) -> None:
        """Empty the cache: a state may be half changed, or belong to another worker now."""
        self._cache.clear()
