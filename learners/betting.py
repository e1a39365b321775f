"""Tests by betting: sure of a mean at any time, however often one looks (Waudby-Smith & Ramdas,
JRSS B 2024).

A gambler bets on each value being above m, in a game that is fair if m is the mean. Then his stake
reaches 1/error at some time with probability `error` at most (Ville, 1939): where it does, the mean
is surely greater than m.
"""

from math import exp, log, log1p

from pydantic import BaseModel, Field

FRACTIONS = tuple(0.002 * (0.95 / 0.002) ** (number / 31) for number in range(32))
"""How boldly is bet: shares of what could be lost. The mixture over them does nearly as well as the
best one.
"""


class Wager(BaseModel):
    """A gambler's stakes, value by value; small enough to lie in a processor's state.

    Attributes:
        mean: what the mean of the values is surely above, once the wager is won.
        least: no value is below it; below `mean`.
        stakes: natural logarithms, one for each of `FRACTIONS`.
        most: the largest logarithm that their mixture has reached.
        values: how many there were.
    """

    mean: float
    least: float
    stakes: list[float] = Field(default_factory=lambda: [0.0] * len(FRACTIONS))
    most: float = 0.0
    values: int = 0

    def take(self, value: float) -> None:
        """Play one round."""
        odds = (value - self.mean) / (self.mean - self.least)
        self.stakes = [
            stake + log1p(share * odds) for stake, share in zip(self.stakes, FRACTIONS, strict=True)
        ]
        highest = max(self.stakes)
        mixed = highest + log(sum(exp(stake - highest) for stake in self.stakes) / len(self.stakes))
        self.most = max(self.most, mixed)
        self.values += 1

    def won(self, error: float) -> bool:
        """Return whether the mean is surely greater, wrongly so with probability `error` at most,
        whenever one asks.
        """
        return self.most >= log(1.0 / error)
