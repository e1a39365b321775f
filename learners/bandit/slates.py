"""The sparse features of a whole slate, as arrays, so that many candidates are scored at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Features = dict[int, float]

BITS = 18
MASK = (1 << BITS) - 1
ODD = 0x9E3779B1


@dataclass(frozen=True)
class Part:
    """Some features of some candidates: three arrays of the same length.

    Attributes:
        rows: the candidates, as places in the slate.
        indices: features in [0, 2**18).
        values: their values. A feature that a candidate has twice counts as their sum.
    """

    rows: Integers
    indices: Integers
    values: Floats

    @classmethod
    def of(cls, terms: Sequence[tuple[int, int, float]]) -> "Part":
        """Return a part from rows, indices and values."""
        rows, indices, values = zip(*terms, strict=True) if terms else ((), (), ())
        return cls(
            np.array(rows, dtype=np.int64),
            np.array(indices, dtype=np.int64),
            np.array(values, dtype=float),
        )

    @classmethod
    def joined(cls, parts: "Sequence[Part]") -> "Part":
        """Return all parts as one."""
        return cls(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.indices for part in parts]),
            np.concatenate([part.values for part in parts]),
        )

    def scaled(self, by_row: Floats) -> "Part":
        """Return the features times a factor for each candidate, shape (K,)."""
        return Part(self.rows, self.indices, self.values * by_row[self.rows])

    def crossed(self, left: Integers, factors: Floats) -> "Part":
        """Return each of the features crossed with each of some others, by index and value."""
        return Part(
            np.tile(self.rows, len(left)),
            crossed(left[:, None], self.indices[None, :]).ravel(),
            (factors[:, None] * self.values[None, :]).ravel(),
        )


@dataclass(frozen=True)
class Slate:
    """The features of K candidates."""

    count: int
    part: Part

    def scores(self, weights: Floats) -> list[float]:
        """Return the sum of weights times values of each candidate; weights of shape (2**18,)."""
        terms = weights[self.part.indices] * self.part.values
        # `bincount` adds from first to last, so that the same policy scores the same everywhere.
        scores: list[float] = np.bincount(
            self.part.rows, weights=terms, minlength=self.count
        ).tolist()
        return scores

    def features(self, row: int) -> Features:
        """Return the features of one candidate."""
        mine = self.part.rows == row
        found: Features = {}
        for index, value in zip(
            self.part.indices[mine].tolist(), self.part.values[mine].tolist(), strict=True
        ):
            found[index] = found.get(index, 0.0) + value
        return found


def crossed(first: Integers, second: Integers) -> Integers:
    """Return the features that stand for both of two."""
    both: Integers = (first * ODD ^ second) & MASK
    return both
