"""The bandit by itself, without a log: for benchmarks, simulations, and programs that only want to
choose.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from random import Random
from typing import NamedTuple

from learners.bandit.exploration import squarecb, with_floor
from learners.bandit.features import Features, features
from learners.bandit.regressor import BlockBayesianRegressor, RegressorConfig

EPSILON = 0.005
GAMMA_SCALE = 200.0


class Plain(NamedTuple):
    """A candidate that is a text or numbers."""

    text: str = ""
    numbers: Mapping[str, float] = {}


class OnlineBandit:
    """Chooses and learns at once, with the features, the regression and the exploration of the
    bandit learner.

    Args:
        seed: of the draws.
        epsilon: share of uniform exploration; 0.005 earns most, 0.03 and more serves off-policy
            evaluation better.

    Examples:
        >>> bandit = OnlineBandit(seed=1)
        >>> for _ in range(200):
        ...     index, propensity = bandit.choose(["take the bus", "take a boat"])
        ...     reward = float(index == 1)
        ...     bandit.learn(["take the bus", "take a boat"], index, propensity, reward)
        >>> bandit.probabilities(["take the bus", "take a boat"])[1] > 0.95
        True
    """

    def __init__(
        self, seed: int, epsilon: float = EPSILON, config: RegressorConfig | None = None
    ) -> None:
        self.regressor = BlockBayesianRegressor(config)
        self._random = Random(seed)  # noqa: S311 - a simulation's, not a secret's
        self._epsilon = epsilon
        self._last: tuple[list[str | Mapping[str, float]], list[Features]] = ([], [])

    def probabilities(self, candidates: Sequence[str | Mapping[str, float]]) -> list[float]:
        """Return the probability of each candidate, a text or numbers by name, in their order."""
        return self._chances(_features(candidates))

    def choose(self, candidates: Sequence[str | Mapping[str, float]]) -> tuple[int, float]:
        """Return the index of a candidate, drawn, and the probability that it had."""
        found = _features(candidates)
        self._last = [c if isinstance(c, str) else dict(c) for c in candidates], found
        chances = self._chances(found)
        (index,) = self._random.choices(range(len(chances)), chances)
        return index, chances[index]

    def learn(
        self,
        candidates: Sequence[str | Mapping[str, float]],
        index: int,
        # part of what a bandit is told; direct updates do without
        propensity: float,  # noqa: ARG002
        reward: float,
    ) -> None:
        """Learn what the chosen candidate earned; it may have been chosen long ago, or by somebody
        else.
        """
        last, found = self._last  # most often what was chosen from last is learned next
        self.regressor.learn_one(
            (found if last == list(candidates) else _features(candidates))[index], reward
        )

    def _chances(self, found: Sequence[Features]) -> list[float]:
        means = self.regressor.predict_many(found)
        return with_floor(
            squarecb(means, GAMMA_SCALE * sqrt(self.regressor.examples + 1)), self._epsilon
        )


def _features(candidates: Sequence[str | Mapping[str, float]]) -> list[Features]:
    return features(
        "", [Plain(text=c) if isinstance(c, str) else Plain(numbers=c) for c in candidates]
    )


def benchmark_policy(seed: int) -> OnlineBandit:
    """Return a new bandit to compare with others: `choose(candidates)`, then `learn(candidates,
    index, …, reward)`.

    Candidates are texts, or dicts of numbers; rewards should be in [0, 1].
    """
    return OnlineBandit(seed)
