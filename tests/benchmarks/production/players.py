"""Who plays without a log: Vowpal Wabbit, and the bandit's learner without a gate."""

from collections.abc import Sequence
from itertools import product
from random import Random
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from vowpalwabbit import Workspace

from learners.bandit.config import BanditConfig
from learners.bandit.embeddings import embedding
from learners.bandit.features import identity_of, slate_of, words_of
from learners.bandit.knowledge import Knowledge, Observation
from learners.bandit.learner import policy_of
from learners.bandit.regressor import BlockBayesianRegressor
from learners.bandit.tokens import tokens
from learners.bandit.vocabulary import Vocabulary
from schemas.decisions import Candidate
from tests.benchmarks.production.problems import Turn

Floats = NDArray[np.float64]


class Player(Protocol):
    """Chooses, and learns later what the choice earned."""

    def choose(self, turn: Turn) -> tuple[int, float]:
        """Return an index and its propensity."""
        ...

    def learn(self, turn: Turn, index: int, propensity: float) -> None:
        """Learn from the reward of a choice."""
        ...


class Uniform:
    """Chance."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def choose(self, turn: Turn) -> tuple[int, float]:
        return self._random.randrange(len(turn.candidates)), 1.0 / len(turn.candidates)

    def learn(self, turn: Turn, index: int, propensity: float) -> None:
        pass


class VowpalWabbit:
    """Vowpal Wabbit through its Python API, on the words that our policy reads too.

    Contexts, ids, texts with their pairs of words, and numbers have namespaces of their own.
    """

    def __init__(self, seed: int, arguments: str) -> None:
        self._workspace = Workspace(
            f"--cb_explore_adf {arguments} --ngram t2 --quiet --random_seed {seed + 1}",
            enable_logging=False,
        )
        self._random = Random(seed)

    def choose(self, turn: Turn) -> tuple[int, float]:
        chances = self._workspace.predict(_lines(turn))
        (index,) = self._random.choices(range(len(chances)), chances)
        return index, chances[index] / sum(chances)

    def learn(self, turn: Turn, index: int, propensity: float) -> None:
        lines = _lines(turn)
        place = index + len(lines) - len(turn.candidates)
        lines[place] = f"0:{-turn.rewards[index]}:{propensity} {lines[place]}"
        self._workspace.learn(lines)


def _lines(turn: Turn) -> list[str]:
    shared = [f"shared |c {_words(turn.context)}"] if turn.context else []
    return [*shared, *map(_line, turn.candidates)]


def _line(candidate: Candidate) -> str:
    numbers = [f"{n.replace(':', '_')}:{value:.6g}" for n, value in candidate.numbers.items()]
    parts = {"i": candidate.id, "t": _words(candidate.text), "n": " ".join(numbers)}
    return " ".join(f"|{name} {part}" for name, part in parts.items() if part)


def _words(text: str) -> str:
    return " ".join(tokens(text))


class Ungated:
    """The bandit's learner with its defaults. Each choice is by all that is learned so far."""

    def __init__(self, seed: int, config: BanditConfig | None = None) -> None:
        self._config = config or BanditConfig()
        self._knowledge = Knowledge(BlockBayesianRegressor(self._config.regressor()))
        self._vocabulary = Vocabulary()
        self._random = Random(seed)

    def choose(self, turn: Turn) -> tuple[int, float]:
        policy = policy_of(self._knowledge, self._config, self._vocabulary)
        chances = policy.probabilities(turn.context, turn.candidates)
        (index,) = self._random.choices(range(len(chances)), chances)
        return index, chances[index]

    def learn(self, turn: Turn, index: int, propensity: float) -> None:
        self._vocabulary.take(words_of(turn.context), identity_of(turn.candidates[index]))
        meaning = embedding(turn.context) if self._config.embeddings else None
        asked = turn.context, turn.candidates
        slate = slate_of(*asked, vocabulary=self._vocabulary, meaning=meaning)
        self._knowledge.learn(
            Observation(slate.features(index), propensity, slate.count),
            turn.rewards[index],
            self._config,
        )


def earned(player: Player, turns: Sequence[Turn]) -> Floats:
    """Return the reward of every round, also of those whose reward nobody is told."""
    rewards, due = [], dict[int, list[tuple[Turn, int, float]]]()
    for number, turn in enumerate(turns):
        for known in due.pop(number, []):
            player.learn(*known)
        index, propensity = player.choose(turn)
        rewards.append(turn.rewards[index])
        if turn.delay is not None:
            due.setdefault(number + turn.delay, []).append((turn, index, propensity))
    return np.array(rewards)


EXPLORATIONS = {
    "epsilon 0.03": "--epsilon 0.03",
    "squarecb 10": "--squarecb --gamma_scale 10",
    "squarecb 100": "--squarecb --gamma_scale 100",
    "cover 4": "--cover 4 --epsilon 0.03",
    "softmax 20": "--softmax --lambda 20",
}
RATES = (0.5, 1.5, 5.0)
CROSSES = {"context x id": "-q ci", "context x id and text": "-q ci -q ct"}
GRID = {
    f"{exploration}, rate {rate}, {cross}": f"{arguments} -l {rate} {crossed}"
    for (exploration, arguments), rate, (cross, crossed) in product(
        EXPLORATIONS.items(), RATES, CROSSES.items()
    )
}
"""What is tried of Vowpal Wabbit. `squarecb 10, rate 0.5` are its defaults."""
