"""What both play: decisions with a context, and what each candidate would earn.

Six problems are those of `tests.benchmarks.bandits`. The others have what they lack: ids that
differ by digits, long contexts, other scripts, rewards that come late, rewards that never come, and
two tasks of a real data set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import orjson
from research_society.tasks import load_tasks

from schemas.decisions import Candidate
from tests.benchmarks.bandits.problems import PROBLEMS as PLAIN
from tests.benchmarks.bandits.problems import Round
from tests.benchmarks.bandits.pubmedqa import round_of
from tests.benchmarks.production.words import CHINESE, ENGLISH, LONG, RUSSIAN, Language

ROUNDS = 1500
DELAY = 10
"""After so many rounds a reward is known, unless a problem says otherwise."""

LATE = (50, 250)
"""The same in the problem of late rewards: evenly between these, so out of order."""

TOLD = 0.4
"""Share of the rewards that come in the problem of missing ones."""

TASKS = Path(__file__).parents[3].parent / "shared" / "data" / "pubmedqa" / "ori_pqal.json"
RIGHT, WRONG = 0.85, 0.35


@dataclass(frozen=True)
class Turn:
    """A decision, and what comes of it.

    Attributes:
        rewards: what each candidate would earn, in [0, 1].
        delay: rounds until the reward is known; None where it never is.
    """

    context: str
    candidates: list[Candidate]
    rewards: list[float]
    delay: int | None = DELAY


def _plain(name: str, seed: int) -> list[Turn]:
    """Return one of the problems without a context."""
    return [_turn(shown) for shown in PLAIN[name](seed, ROUNDS)]


def _turn(shown: Round, context: str = "") -> Turn:
    candidates = [
        Candidate(text=one) if isinstance(one, str) else Candidate(numbers=one)
        for one in shown.candidates
    ]
    return Turn(context, candidates, shown.rewards)


def tickets(language: Language, seed: int) -> list[Turn]:
    """Return tickets, each about one of some topics, in one of its words, among words that mean
    nothing. Each topic has its best answer, which is good 85 times in 100; others are 35 times.
    """
    random = Random(seed)
    best = [random.randrange(len(language.answers)) for _ in language.topics]
    candidates = [Candidate(id=name, text=text) for name, text in language.answers.items()]
    weights = [1.0 / (place + 1) for place in range(len(language.fillers))]
    turns = []
    for _ in range(ROUNDS):
        topic = random.randrange(len(language.topics))
        words = random.choices(language.fillers, weights, k=random.choice(language.lengths))
        words.insert(random.randrange(len(words) + 1), random.choice(language.topics[topic]))
        rewards = [
            float(random.random() < (RIGHT if answer == best[topic] else WRONG))
            for answer in range(len(candidates))
        ]
        turns.append(Turn(language.joined(words), candidates, rewards))
    return turns


def numbered(seed: int) -> list[Turn]:
    """Return decisions among six of thirty tools that differ by digits, for customers who do too.

    Each tool has a worth, and each pair of a tool and a plan.
    """
    random = np.random.default_rng(seed)
    tools = [f"tool-{number}" for number in random.choice(9000, 30, replace=False) + 1000]
    plans = [str(number) for number in random.choice(90, 4, replace=False) + 10]
    worth = random.normal(0.0, 0.8, size=(len(tools), 1))
    worth = worth + random.normal(0.0, 0.8, size=(len(tools), len(plans)))
    turns = []
    for _ in range(ROUNDS):
        plan = int(random.integers(len(plans)))
        shown = random.choice(len(tools), 6, replace=False)
        chances = 1.0 / (1.0 + np.exp(-worth[shown, plan]))
        context = f"customer {random.integers(10_000, 99_999)}, plan {plans[plan]}, region 7"
        candidates = [Candidate(id=tools[one], text=f"run {tools[one]}") for one in shown]
        noisy = np.clip(chances + random.normal(0.0, 0.1, size=len(shown)), 0.0, 1.0)
        turns.append(Turn(context, candidates, noisy.tolist()))
    return turns


def late(seed: int) -> list[Turn]:
    """Return tickets whose rewards come late, and out of order."""
    random = Random(seed + 1000)
    return [replace(turn, delay=random.randint(*LATE)) for turn in tickets(ENGLISH, seed)]


def missing(seed: int) -> list[Turn]:
    """Return tickets of which most never get a reward."""
    random = Random(seed + 1000)
    return [
        turn if random.random() < TOLD else replace(turn, delay=None)
        for turn in tickets(ENGLISH, seed)
    ]


def proposed(tasks: Path, seed: int) -> list[Turn]:
    """Return PubMedQA's questions, each with the hypotheses of three juniors (see
    `tests.benchmarks.bandits.pubmedqa`).
    """
    found = [_turn(round_of(task), task.goal) for task in load_tasks(str(tasks))]
    Random(seed).shuffle(found)
    return found


def answered(tasks: Path, seed: int) -> list[Turn]:
    """Return PubMedQA's questions with their abstracts as contexts; right is the experts'
    answer.
    """
    candidates = [Candidate(id=answer, text=answer) for answer in ("yes", "no", "maybe")]
    found = [
        Turn(
            " ".join([asked["QUESTION"], *asked["CONTEXTS"]]),
            candidates,
            [float(one.id == asked["final_decision"]) for one in candidates],
        )
        for asked in orjson.loads(tasks.read_bytes()).values()
    ]
    Random(seed).shuffle(found)
    return found


def problems(tasks: Path = TASKS) -> dict[str, Callable[[int], Sequence[Turn]]]:
    """Return the problems by name, each as a function of the seed; without PubMedQA where its file
    is not there.
    """
    real = {"PubMedQA, hypotheses": proposed, "PubMedQA, answers": answered}
    return {
        **{name: partial(_plain, name) for name in PLAIN},
        "digits in ids": numbered,
        "long contexts": partial(tickets, LONG),
        "Russian": partial(tickets, RUSSIAN),
        "Chinese": partial(tickets, CHINESE),
        "late rewards": late,
        "missing rewards": missing,
        **({name: partial(made, tasks) for name, made in real.items()} if tasks.exists() else {}),
    }
