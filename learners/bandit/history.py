"""When the bandit learned its examples, and how much noise it then expected: enough to take any of
them back, in bounded memory.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.bandit.arrays import finite, packed, unpacked
from learners.bandit.beliefs import Floats
from learners.bandit.regressor import Moment

Keys = NDArray[np.uint64]

MOST_MARKS = 512
"""Beyond these, every second mark is dropped. A mark has 48 bytes with three members."""


@dataclass
class History:
    """The newest examples by their keys, and marks along all of them.

    A mark is made of every example at first, then of every second, fourth, and so on.

    Attributes:
        remembered: number of newest examples that are known by their keys.
        count: number of examples.
        keys: shape (n,), n <= remembered; example number e has place (e - 1) modulo `remembered`.
        rows: shape (n, 2 E); each member's errors and what had faded, see `Moment`.
        stride: examples from one mark to the next.
        times: when the marked examples happened, in milliseconds since 1970; never falling.
        examples: their numbers.
        errors: each member's recent squared error before them.
    """

    remembered: int
    count: int = 0
    keys: Keys = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    rows: Floats = field(default_factory=lambda: np.empty((0, 0)))
    stride: int = 1
    times: list[int] = field(default_factory=list)
    examples: list[int] = field(default_factory=list)
    errors: list[tuple[float, ...]] = field(default_factory=list)

    def note(self, key: int, time_ms: int, moment: Moment) -> None:
        """Note an example that is about to be learned."""
        self._remember(key, moment)
        if (moment.example - 1) % self.stride:
            return
        # The log's order counts. Times may go back a little within it.
        self.times.append(max(time_ms, self.times[-1]) if self.times else time_ms)
        self.examples.append(moment.example)
        self.errors.append(moment.errors)
        if len(self.times) > MOST_MARKS:
            # The first mark stays: what is older was never learned.
            self.stride *= 2
            self.times, self.examples = self.times[::2], self.examples[::2]
            self.errors = self.errors[::2]

    def find(self, key: int, time_ms: int) -> Moment | None:
        """Return where an example stands; None if it was never learned.

        An example that is not among the newest is found by its time. Between two marks, examples
        are taken to have come evenly.
        """
        found = np.nonzero(self.keys[: self.count] == key)[0]
        if len(found):
            return self._remembered(int(found[0]))
        mark = bisect_right(self.times, time_ms) - 1
        if self.count <= self.remembered or mark < 0:
            return None
        example = self.examples[mark]
        if mark + 1 < len(self.times):
            span = self.times[mark + 1] - self.times[mark]
            passed = (time_ms - self.times[mark]) * (self.examples[mark + 1] - example)
            example += passed // span
        return Moment(min(example, self.count - self.remembered), self.errors[mark])

    def to_json(self) -> dict[str, Any]:
        """Return the history as JSON, exact to the bit."""
        filled = min(self.count, self.remembered)
        return {
            "remembered": self.remembered,
            "count": self.count,
            "keys": packed(self.keys[:filled], "<u8"),
            "rows": packed(self.rows[:filled], "<f8"),
            "stride": self.stride,
            "times": packed(self.times, "<i8"),
            "examples": packed(self.examples, "<i8"),
            "errors": packed(self.errors, "<f8"),
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "History":
        """Return the history that `to_json` wrote."""
        keys = unpacked(document["keys"], "<u8").astype(np.uint64)
        times = unpacked(document["times"], "<i8").tolist()
        errors = finite(document["errors"]).reshape(max(1, len(times)), -1)
        return cls(
            remembered=int(document["remembered"]),
            count=int(document["count"]),
            keys=keys,
            rows=finite(document["rows"]).reshape(max(1, len(keys)), -1)[: len(keys)],
            stride=int(document["stride"]),
            times=times,
            examples=unpacked(document["examples"], "<i8").tolist(),
            errors=[tuple(row) for row in errors.tolist()][: len(times)],
        )

    def _remember(self, key: int, moment: Moment) -> None:
        place = self.count % self.remembered
        if place >= len(self.keys):
            room = min(self.remembered, max(64, 2 * len(self.keys)))
            keys, rows = self.keys, self.rows
            self.keys = np.zeros(room, dtype=np.uint64)
            self.rows = np.zeros((room, 2 * len(moment.errors)))
            self.keys[: len(keys)] = keys
            self.rows[: len(rows)] = rows.reshape(len(rows), self.rows.shape[1])
        self.keys[place] = key
        self.rows[place] = (*moment.errors, *(moment.faded or ()))
        self.count += 1

    def _remembered(self, place: int) -> Moment:
        behind = (self.count - 1 - place) % self.remembered
        row = self.rows[place].tolist()
        members = len(row) // 2
        return Moment(self.count - behind, tuple(row[:members]), tuple(row[members:]))
