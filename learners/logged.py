"""Logged decisions with their rewards, and the rollouts that made them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.decisions import Decision

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Logged:
    """A logged decision with its reward.

    Attributes:
        reward: in [0, 1].
        rollout: its rollout, which is the unit of evidence: decisions of one rollout count as one.
            None where each decision stands for itself.
    """

    decision: Decision
    reward: float
    rollout: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.reward <= 1.0:
            raise ValueError(f"reward {self.reward} is not in [0, 1]")


def rollouts_of(log: Sequence[Logged]) -> int:
    """Return how many rollouts a log has, which is how much evidence it is."""
    named = {item.rollout for item in log if item.rollout is not None}
    return len(named) + sum(item.rollout is None for item in log)


class ByRollout:
    """The rollouts of a log, in the order in which they first appear."""

    def __init__(self, log: Sequence[Logged]) -> None:
        numbers: dict[str | int, int] = {}
        # Names are texts and places are numbers, so a rollout and a lone decision never meet.
        keys = (item.rollout if item.rollout is not None else n for n, item in enumerate(log))
        self.of = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
        self._sizes = np.bincount(self.of)

    def means(self, values: Floats) -> Floats:
        """Return the mean of the decisions' values by rollout, shape (rollouts,)."""
        means: Floats = np.bincount(self.of, weights=values) / self._sizes
        return means


def rewards_of(log: Sequence[Logged]) -> Floats:
    """Return the rewards, shape (n,)."""
    return np.array([item.reward for item in log])


def propensities_of(log: Sequence[Logged]) -> Floats:
    """Return the propensities of the choices, shape (n,)."""
    return np.array([item.decision.propensity for item in log])
