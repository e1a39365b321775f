"""Worlds whose better option is known."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from random import Random

from schemas.decisions import Candidate
from tests.users.models import RIGHT, luck


@dataclass(frozen=True)
class Asked:
    """What a rollout is asked.

    Attributes:
        rewards: what each candidate would earn, in [0, 1].
        best: index of the candidate that is better on average.
    """

    context: str
    candidates: list[Candidate]
    rewards: list[float]
    best: int


def sums(seed: int) -> Iterator[Asked]:
    """Yield sums of numbers that are mostly new. One candidate is right in half of them, the other
    in 19 of 20. No word of the context tells which.
    """
    candidates = [Candidate(id=model, text=model) for model in RIGHT]
    best = list(RIGHT).index(max(RIGHT, key=RIGHT.__getitem__))
    for number in count(seed * 1000):
        question = f"What is {10 + number % 89} + {10 + number // 89}?"
        rewards = [float(luck(f"{model} {question}") < RIGHT[model]) for model in RIGHT]
        yield Asked(question, candidates, rewards, best)


def complaints(seed: int) -> Iterator[Asked]:
    """Yield complaints in Chinese. Which of three answers is best depends on the complaint."""
    texts = {
        "换货": "我订的{thing}收到时已经摔坏了,包装也是破的。订单{n}。",
        "退款": "{thing}一直没有发货,我不想要了,请取消订单{n}。",
        "道歉": "{thing}晚到了三天,东西没问题,但是让人很生气。订单{n}。",
    }
    things = ("杯子", "台灯", "耳机", "书包", "雨伞", "键盘")
    answers = list(texts)
    candidates = [Candidate(text=answer) for answer in answers]
    random = Random(seed)
    while True:
        best = random.randrange(len(answers))
        said = texts[answers[best]].format(thing=random.choice(things), n=random.randrange(10_000))
        rewards = [
            (0.9 if answer == best else 0.3) + 0.1 * random.random()
            for answer in range(len(answers))
        ]
        yield Asked(said, candidates, rewards, best)


WORLDS: dict[str, Callable[[int], Iterator[Asked]]] = {"sums": sums, "complaints": complaints}
