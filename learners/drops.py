"""Drops: whether rewards are surely lower than they were before.

It compares with the past. A world that falls for everybody shows as a drop too. That is what a
batch learner wants to know; what serves is compared with a control at the same time
(`learners.trial`).
"""

from math import log, sqrt

from pydantic import BaseModel

from learners.betting import Wager
from learners.trial import Tally


def surely_above(before: Tally, error: float) -> float:
    """Return a lower bound of an expected reward, by Hoeffding's inequality (JASA, 1963).

    The bound is wrong with probability at most `error`. Without rewards it is 0.
    """
    return before.mean - sqrt(log(1.0 / error) / (2 * before.count)) if before.count else 0.0


class DropWatch(BaseModel):
    """The watch over rewards in [0, 1].

    Attributes:
        error: probability that it tells a drop where there is none.
        drop: won when the mean reward is surely too low.
    """

    error: float
    drop: Wager

    @classmethod
    def of(cls, before: Tally, drop: float, error: float) -> "DropWatch | None":
        """Return the watch; None if there were too few rewards before to tell a drop.

        Args:
            before: the rewards so far.
            drop: how much lower than those the mean must be.
        """
        # Half of the error is spent on this bound, half on the wager, so that both hold together.
        bar = surely_above(before, error / 2) - drop
        return cls(error=error, drop=Wager(mean=-bar, least=-1.0)) if bar > 0.0 else None

    def dropped(self, reward: float) -> bool:
        """Add a reward; return whether the mean is surely too low."""
        # A wager shows that a mean is high. Negated rewards make it show that rewards are low.
        self.drop.take(-reward)
        return self.drop.won(self.error / 2)
