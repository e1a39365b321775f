"""The problems: classification data sets as bandits, and hypotheses in words whose worth is
hidden.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.preprocessing import StandardScaler

Candidate = str | dict[str, float]
ROUNDS = 1000
HYPOTHESES = 5
NOISE = 0.1

WORDS = (
    (
        "aspirin",
        "metformin",
        "statins",
        "insulin",
        "exercise",
        "caffeine",
        "vitamin",
        "omega",
        "zinc",
        "melatonin",
    ),
    ("markedly", "slightly", "reliably", "possibly", "rapidly"),
    ("reduces", "increases", "prevents", "delays", "accelerates", "modulates"),
    (
        "mortality",
        "stroke",
        "pain",
        "inflammation",
        "depression",
        "recurrence",
        "fatigue",
        "infection",
        "fracture",
    ),
    ("adults", "children", "women", "smokers", "diabetics", "elderly", "athletes", "veterans"),
)
VERB, OBJECT = 2, 3


@dataclass(frozen=True)
class Round:
    """What is shown, and what each candidate would earn; the same for all who play."""

    candidates: list[Candidate]
    rewards: list[float]


def classification(load: Callable[[], Any], seed: int, count: int = ROUNDS) -> list[Round]:
    """Return a data set as a bandit: each class a candidate with standardised features; the right
    one earns 1.
    """
    data, random = load(), np.random.default_rng(seed)
    features: NDArray[np.float64] = StandardScaler().fit_transform(data.data)
    classes = range(len(data.target_names))
    order = np.concatenate(
        [random.permutation(len(features)) for _ in range(count // len(features) + 1)]
    )[:count]
    return [
        Round(
            [
                {f"{c}:{n}": float(v) for n, v in enumerate(features[row])} | {f"{c}:one": 1.0}
                for c in classes
            ],
            [float(c == data.target[row]) for c in classes],
        )
        for row in order
    ]


def hypotheses(changed: Callable[[float], float], seed: int, count: int = ROUNDS) -> list[Round]:
    """Return sentences whose words, and pairs of verb and object, have hidden worths; rewards are
    noisy.

    Args:
        changed: time in [0, 1) to the share of a second world, with other worths, in [0, 1].
    """
    random = np.random.default_rng(1000 + seed)
    before, after = _worths(random), _worths(random)
    rounds = []
    for number in range(count):
        share = changed(number / count)
        texts: list[Candidate] = []
        rewards = []
        for _ in range(HYPOTHESES):
            words = [str(random.choice(kind)) for kind in WORDS]
            worth = (1 - share) * _worth(before, words) + share * _worth(after, words)
            texts.append(f"{' '.join(words[:-1])} in {words[-1]}")
            rewards.append(float(np.clip(1 / (1 + np.exp(-worth)) + random.normal(0, NOISE), 0, 1)))
        rounds.append(Round(texts, rewards))
    return rounds


def _worths(random: np.random.Generator) -> dict[str, float]:
    single = {word: float(random.normal(0, 0.6)) for kind in WORDS for word in kind}
    return single | {
        f"{verb} {of}": float(random.normal(0, 0.7)) for verb in WORDS[VERB] for of in WORDS[OBJECT]
    }


def _worth(worths: dict[str, float], words: Sequence[str]) -> float:
    return sum(worths[word] for word in words) + worths[f"{words[VERB]} {words[OBJECT]}"]


class Problem(Protocol):
    """Makes the rounds of a problem."""

    def __call__(self, seed: int, count: int = ROUNDS) -> list[Round]:
        """Return so many rounds."""
        ...


PROBLEMS: dict[str, Problem] = {
    "digits": partial(classification, load_digits),
    "wine": partial(classification, load_wine),
    "breast cancer": partial(classification, load_breast_cancer),
    "hypotheses": partial(hypotheses, lambda _: 0.0),
    "hypotheses, abrupt drift": partial(hypotheses, lambda time: float(time >= 0.5)),
    "hypotheses, gradual drift": partial(hypotheses, lambda time: time),
}
