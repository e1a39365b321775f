"""Who plays: Everloop's bandit and its variants, Vowpal Wabbit, River, the article's rule, and
chance.
"""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from math import sqrt
from random import Random
from typing import Any, Protocol
from zlib import crc32

import numpy as np
from river import linear_model, optim
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import SGDClassifier
from vowpalwabbit import Workspace

from learners.bandit import BanditConfig, OnlineBandit, benchmark_policy
from learners.bandit.exploration import squarecb, with_floor
from learners.bandit.features import Features, features
from learners.bandit.knowledge import Knowledge, Observation
from learners.bandit.learner import policy_of
from learners.bandit.online import EPSILON, GAMMA_SCALE, Plain
from learners.bandit.regressor import BlockBayesianRegressor, RegressorConfig
from schemas.decisions import Candidate as Shown
from tests.benchmarks.bandits.problems import Candidate

LINUCB_FEATURES = 64


class Player(Protocol):
    """Chooses, and learns what the choice earned."""

    def choose(self, candidates: Sequence[Candidate]) -> tuple[int, float]:
        """Return an index and its propensity."""
        ...

    def learn(
        self, candidates: Sequence[Candidate], index: int, propensity: float, reward: float
    ) -> None:
        """Learn from the reward of a choice."""
        ...


class Uniform:
    """Chance."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def choose(self, candidates: Sequence[Candidate]) -> tuple[int, float]:
        return self._random.randrange(len(candidates)), 1.0 / len(candidates)

    def learn(
        self, candidates: Sequence[Candidate], index: int, propensity: float, reward: float
    ) -> None:
        pass


class VowpalWabbit:
    """Vowpal Wabbit through its Python API, examples given as text; words come with their pairs."""

    def __init__(self, seed: int, arguments: str) -> None:
        self._workspace = Workspace(
            f"--cb_explore_adf {arguments} --ngram t2 --quiet --random_seed {seed + 1}",
            enable_logging=False,
        )
        self._random = Random(seed)

    def choose(self, candidates: Sequence[Candidate]) -> tuple[int, float]:
        chances = self._workspace.predict([_line(candidate) for candidate in candidates])
        total = sum(chances)
        (index,) = self._random.choices(range(len(chances)), chances)
        return index, chances[index] / total

    def learn(
        self, candidates: Sequence[Candidate], index: int, propensity: float, reward: float
    ) -> None:
        lines = [_line(candidate) for candidate in candidates]
        lines[index] = f"0:{-reward}:{propensity} {lines[index]}"
        self._workspace.learn(lines)


_MARKS = re.compile(r"[:|\s]+")
"""What means something in Vowpal Wabbit's text format."""


def _line(candidate: Candidate) -> str:
    if isinstance(candidate, str):
        return f"|t {_MARKS.sub(' ', candidate)}"
    return "|n " + " ".join(
        f"{name.replace(':', '_')}:{value:.6g}" for name, value in candidate.items()
    )


class LinUcb:
    """The rule and the regression of River's LinUCBDisjoint on the hashed features of each
    candidate.

    LinUCBDisjoint itself has no features of actions, and where candidates change places its arms
    mean nothing.
    """

    def __init__(self, seed: int) -> None:
        self._regression = linear_model.BayesianLinearRegression(alpha=1.0, beta=1.0)
        self._random = Random(seed)

    def choose(self, candidates: Sequence[Candidate]) -> tuple[int, float]:
        believed = [self._regression.predict_one(_hashed(c), with_dist=True) for c in candidates]
        bounds = [belief.mu + belief.sigma for belief in believed]
        best = [index for index, bound in enumerate(bounds) if bound == max(bounds)]
        return self._random.choice(best), 1.0

    def learn(
        self, candidates: Sequence[Candidate], index: int, propensity: float, reward: float
    ) -> None:
        self._regression.learn_one(_hashed(candidates[index]), reward)


class Article:
    """The article's rule: SGDClassifier taught that the choice was right, and greedy.

    The choice gets label 1 weighted by its reward, every other candidate label 0 weighted by (1 -
    reward) / (K - 1).
    """

    def __init__(self, seed: int) -> None:
        self._classifier = SGDClassifier(loss="log_loss", random_state=seed)
        self._hasher = FeatureHasher(2**18, input_type="dict")
        self._random = Random(seed)
        self._taught = False

    def choose(self, candidates: Sequence[Candidate]) -> tuple[int, float]:
        if not self._taught:
            return self._random.randrange(len(candidates)), 1.0 / len(candidates)
        return int(self._classifier.predict_proba(self._rows(candidates))[:, 1].argmax()), 1.0

    def learn(
        self, candidates: Sequence[Candidate], index: int, propensity: float, reward: float
    ) -> None:
        chosen = np.arange(len(candidates)) == index
        weights = np.where(chosen, reward, (1.0 - reward) / (len(candidates) - 1))
        self._classifier.partial_fit(
            self._rows(candidates), chosen.astype(int), classes=[0, 1], sample_weight=weights
        )
        self._taught = True

    def _rows(self, candidates: Sequence[Candidate]) -> Any:
        return self._hasher.transform([_words(candidate) for candidate in candidates])


class RiverRegression:
    """Another of River's regressions behind the bandit's own features and exploration."""

    def __init__(self, seed: int, optimizer: Callable[[], Any]) -> None:
        self._regression = linear_model.LinearRegression(optimizer=optimizer(), intercept_init=0.5)
        self._random = Random(seed)
        self._examples = 0

    def choose(self, candidates: Sequence[Candidate]) -> tuple[int, float]:
        means = [self._regression.predict_one(x) for x in _features(candidates)]
        chances = with_floor(squarecb(means, GAMMA_SCALE * sqrt(self._examples + 1)), EPSILON)
        (index,) = self._random.choices(range(len(chances)), chances)
        return index, chances[index]

    def learn(
        self, candidates: Sequence[Candidate], index: int, propensity: float, reward: float
    ) -> None:
        self._regression.learn_one(_features(candidates)[index], reward)
        self._examples += 1


class Variant:
    """The bandit learner with another setting, learning at once."""

    def __init__(self, seed: int, config: BanditConfig) -> None:
        self._config = config
        self._knowledge = Knowledge(BlockBayesianRegressor(config.regressor()))
        self._random = Random(seed)

    def choose(self, candidates: Sequence[Candidate]) -> tuple[int, float]:
        plain = [Shown(text=c) if isinstance(c, str) else Shown(numbers=c) for c in candidates]
        chances = policy_of(self._knowledge, self._config).probabilities("", plain)
        (index,) = self._random.choices(range(len(chances)), chances)
        return index, chances[index]

    def learn(
        self, candidates: Sequence[Candidate], index: int, propensity: float, reward: float
    ) -> None:
        found = _features(candidates)
        self._knowledge.learn(
            Observation(found[index], propensity, len(found)), reward, self._config
        )


def _features(candidates: Sequence[Candidate]) -> list[Features]:
    return features(
        "", [Plain(text=c) if isinstance(c, str) else Plain(numbers=c) for c in candidates]
    )


def _words(candidate: Candidate) -> dict[str, float]:
    """Return words and their pairs, or the numbers."""
    if not isinstance(candidate, str):
        return candidate
    words = candidate.split()
    return dict.fromkeys([*words, *(" ".join(pair) for pair in pairwise(words))], 1.0)


def _hashed(candidate: Candidate) -> dict[int, float]:
    hashed: dict[int, float] = {}
    for name, value in _words(candidate).items():
        index = crc32(name.encode()) % LINUCB_FEATURES
        hashed[index] = hashed.get(index, 0.0) + value
    return hashed


RATES = (0.5, 1.5, 5.0)
VW_GRID = {
    f"{name}, rate {rate}": f"{arguments} -l {rate}"
    for (name, arguments), rate in product(
        (
            ("squarecb 10", "--squarecb --gamma_scale 10"),
            ("squarecb 50", "--squarecb --gamma_scale 50"),
            ("squarecb 200", "--squarecb --gamma_scale 200"),
            ("bag 5", "--bag 5 --greedify --epsilon 0.01"),
            ("softmax 20", "--softmax --lambda 20"),
            ("softmax 100", "--softmax --lambda 100"),
        ),
        RATES,
    )
}
"""What is tried of Vowpal Wabbit; its defaults are gamma 10 and rate 0.5."""

PLAYERS: dict[str, Callable[[int], Player]] = {
    "everloop": benchmark_policy,
    "everloop, thompson": lambda seed: Variant(
        seed, BanditConfig(exploration="thompson", epsilon=EPSILON)
    ),
    "everloop, bag": lambda seed: Variant(seed, BanditConfig(exploration="bag", epsilon=EPSILON)),
    "everloop, epsilon 0.05": lambda seed: Variant(
        seed, BanditConfig(exploration="epsilon", epsilon=0.05)
    ),
    "everloop, importance weights": lambda seed: Variant(
        seed, BanditConfig(update="importance", epsilon=EPSILON)
    ),
    "everloop, doubly robust": lambda seed: Variant(
        seed, BanditConfig(update="doubly-robust", epsilon=EPSILON)
    ),
    "everloop, no following": lambda seed: OnlineBandit(
        seed, config=RegressorConfig(forgetting=(1e-5,))
    ),
    "everloop, no covariance": lambda seed: OnlineBandit(seed, config=RegressorConfig(dense=0)),
    "River AdaGrad": lambda seed: RiverRegression(seed, lambda: optim.AdaGrad(0.1)),
    "River FTRL": lambda seed: RiverRegression(
        seed, lambda: optim.FTRLProximal(alpha=0.1, beta=1.0, l1=0.0, l2=0.1)
    ),
    "River LinUCB, 64 features": LinUcb,
    "the article's rule": Article,
    "uniform": Uniform,
}
