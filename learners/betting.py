"""Tests by betting: bounds on a mean that hold at every moment (Waudby-Smith & Ramdas, JRSS B
2024).

A gambler bets that each value is above m. The game is fair if m is the mean. Then the stake reaches
1/error at any time with probability at most `error` (Ville, 1939). So when the stake reaches it,
the mean is greater than m.
"""

from math import exp, log, log1p

from pydantic import BaseModel

FRACTIONS = tuple(0.002 * (0.95 / 0.002) ** (number / 31) for number in range(32))
"""Shares of the possible loss that the gamblers bet. A mixture over them does nearly as well as the
best one.
"""

BOLD = FRACTIONS[16::3]
"""The same for values that hardly vary, such as failures that are rare. Fewer gamblers divide the
stake, and timid ones would never win it back: of 100 % successes on both sides, it takes 110 pairs
to be sure of a tolerance of 0.05, and 140 with `FRACTIONS`.
"""


class Wager(BaseModel):
    """The stakes of one wager, value by value; small enough to lie in the state of a processor.

    Attributes:
        mean: the wager is won when the values' mean is greater than this.
        least: no value is below it; below `mean`.
        bold: whether `BOLD` is bet, and not `FRACTIONS`.
        stakes: natural logarithms, one for each of these shares.
        most: greatest logarithm that the mixture of the stakes has reached.
        values: how many values there were.
    """

    mean: float
    least: float
    bold: bool = False
    stakes: list[float] = []
    most: float = 0.0
    values: int = 0

    def take(self, value: float) -> None:
        """Play one round with a value."""
        # At least -1: the worst value loses the whole share that was bet, and never more.
        odds = (value - self.mean) / (self.mean - self.least)
        shares = BOLD if self.bold else FRACTIONS
        stakes = self.stakes or [0.0] * len(shares)
        self.stakes = [
            stake + log1p(share * odds) for stake, share in zip(stakes, shares, strict=True)
        ]
        # Take the greatest out of the sum, so that exp() cannot overflow.
        highest = max(self.stakes)
        mixed = highest + log(sum(exp(stake - highest) for stake in self.stakes) / len(self.stakes))
        # The maximum counts: by Ville's inequality the stake may be looked at after every value.
        self.most = max(self.most, mixed)
        self.values += 1

    def won(self, error: float) -> bool:
        """Return whether the mean is greater than `mean`.

        The answer is wrong with probability at most `error`, however often it is asked.
        """
        return self.most >= log(1.0 / error)
