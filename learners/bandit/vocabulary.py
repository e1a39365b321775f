"""How often the words of contexts, and the candidates, were met: what is worth crossing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MOST_KEPT = 4096
"""Words, and candidates, that are counted at most; so a policy grows by 64 kB at most."""

HALF_MET = 8
"""A word that was met so often has half of its weight."""

MET = 3
"""A candidate that was chosen so often is known by its name."""


class FrequentItems:
    """How often things were met, of those that are met most (Misra & Gries, Finding repeated
    elements, 1982): if there are too many, each loses one, and what has none left is forgotten.
    """

    def __init__(self, counts: dict[int, int] | None = None) -> None:
        self._counts = counts or {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrequentItems) and self._counts == other._counts

    __hash__ = None  # type: ignore[assignment]  # it changes

    def items(self) -> list[tuple[int, int]]:
        """Return all that is counted, with how often, in a fixed order."""
        return sorted(self._counts.items())

    def take(self, met: Iterable[int]) -> None:
        """Count each of these once."""
        for one in met:
            self._counts[one] = self._counts.get(one, 0) + 1
        while len(self._counts) > MOST_KEPT:
            self._counts = {one: left - 1 for one, left in self._counts.items() if left > 1}

    def of(self, one: int) -> int:
        """Return how often this was met, 0 if it was forgotten."""
        return self._counts.get(one, 0)

    def scaled(self, part: int, whole: int) -> "FrequentItems":
        """Return counts of the share part / whole of what was met, rounded up.

        In whole numbers: a share such as 121 / 180 times 180, rounded up, may become 122.
        """
        return FrequentItems(
            {one: -(-often * part // whole) for one, often in self._counts.items()}
        )

    def copy(self) -> "FrequentItems":
        """Return counts that go their own way."""
        return FrequentItems(dict(self._counts))


@dataclass
class Vocabulary:
    """What was met in the decisions that were learned.

    Attributes:
        contexts: how many decisions.
        words: how often each word stood in a context.
        candidates: how often each candidate was chosen.
    """

    contexts: int = 0
    words: FrequentItems = field(default_factory=FrequentItems)
    candidates: FrequentItems = field(default_factory=FrequentItems)

    def take(self, words: Iterable[int], candidate: int) -> None:
        """Count the distinct words of a context, and the candidate that was chosen in it."""
        self.contexts += 1
        self.words.take(words)
        self.candidates.take([candidate])

    def knows(self, candidate: int) -> bool:
        """Whether a candidate was chosen often enough to learn about itself."""
        return self.candidates.of(candidate) >= MET

    def weights(self, words: Sequence[int]) -> NDArray[np.float64]:
        """Return what each word of a context may tell, > 0.

        A word that stands in nearly all contexts tells little. A word that was hardly ever met
        tells nothing yet: its weights have not been learned. So the weight is the share of the
        contexts without the word, times d / (d + 8) where it stood in d of them.
        """
        met = np.array([self.words.of(word) for word in words], dtype=float)
        known: NDArray[np.float64] = (met + 1.0) / (met + 1.0 + HALF_MET)
        return known * np.maximum(1.0 - met / (self.contexts + 1.0), 0.0)

    def before(self, contexts: int) -> "Vocabulary":
        """Return an estimate of what the vocabulary was after the first `contexts` decisions.

        Everything is taken to have been met evenly.
        """
        whole = max(1, self.contexts)
        part = min(contexts, whole)
        return Vocabulary(
            contexts, self.words.scaled(part, whole), self.candidates.scaled(part, whole)
        )

    def copy(self) -> "Vocabulary":
        """Return a vocabulary that goes its own way."""
        return Vocabulary(self.contexts, self.words.copy(), self.candidates.copy())
