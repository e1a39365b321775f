"""The bandit without a log: for benchmarks, simulations, and programs that only choose."""

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
    """A candidate that is a text, or numbers by name."""

    text: str = ""
    numbers: Mapping[str, float] = {}
    id: str = ""


class OnlineBandit:
    """Chooses and learns at once, with the bandit learner's features, regression and exploration.

    Args:
        seed: of the random choices.
        epsilon: share of uniform exploration, in (0, 1]; 0.005 earns most, 0.03 and more gives
            better off-policy evaluation.

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
        self._random = Random(seed)  # noqa: S311 - choices are no secrets
        self._epsilon = epsilon
        self._last: tuple[list[str | Mapping[str, float]], list[Features]] = ([], [])

    def probabilities(self, candidates: Sequence[str | Mapping[str, float]]) -> list[float]:
        """Return the probability of each candidate, in their order; a candidate is a text, or
        numbers by name.
        """
        return self._chances(_features(candidates))

    def choose(self, candidates: Sequence[str | Mapping[str, float]]) -> tuple[int, float]:
        """Return the index of a randomly chosen candidate, and the probability it had."""
        found = _features(candidates)
        self._last = [c if isinstance(c, str) else dict(c) for c in candidates], found
        chances = self._chances(found)
        (index,) = self._random.choices(range(len(chances)), chances)
        return index, chances[index]

    def learn(
        self,
        candidates: Sequence[str | Mapping[str, float]],
        index: int,
        # Part of the interface of a bandit; direct updates do not use it.
        propensity: float,  # noqa: ARG002
        reward: float,
    ) -> None:
        """Learn the reward of the chosen candidate. Any program may have chosen it, at any time
        before.
        """
        # Most often the last choice is learned next, and its features are ready.
        last, found = self._last
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
    """Return a new bandit for comparisons: `choose(candidates)`, then `learn(candidates, index, …,
    reward)`.

    Candidates are texts, or dictionaries of numbers. Rewards should be in [0, 1].
    """
    return OnlineBandit(seed)
