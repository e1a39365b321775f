"""What the users' agents are asked, ticket by ticket. `right` is the better option of each choice
that a ticket takes; only the agent of steps looks at it, to see whether a tool worked.
"""

from collections.abc import Iterator
from itertools import count
from random import Random
from typing import Any

from tests.users.models import luck

Ticket = dict[str, Any]


def sums() -> Iterator[Ticket]:
    """Yield sums. One model is right in half of them, the other in 19 of 20."""
    for number in count():
        a, b = 10 + number % 89, 10 + number // 89
        question = f"What is {a} + {b}?"
        yield {
            "number": number,
            "question": question,
            "expected": str(a + b),
            "right": ["careful"],
        }


def questions() -> Iterator[Ticket]:
    """Yield questions that take six turns."""
    for number in count():
        question = f"How do I repair part {number} of my bicycle?"
        yield {"number": number, "question": question, "right": ["careful"] * 6}


def steps() -> Iterator[Ticket]:
    """Yield tasks of ten steps. A step says what it needs, and one of two tools does it."""
    texts = {
        "search": "Look up the rule about {n} in the handbook.",
        "calculator": "Multiply {n} by 17 and add the fee.",
    }
    random = Random(1)
    for number in count():
        right = [random.choice(list(texts)) for _ in range(10)]
        asked = [texts[tool].format(n=random.randrange(1000)) for tool in right]
        yield {"number": number, "steps": asked, "right": right}


def complaints() -> Iterator[Ticket]:
    """Yield complaints in Chinese. What satisfies a customer depends on the complaint."""
    texts = {
        "换货": "我订的{thing}收到时已经摔坏了,包装也是破的。订单{n}。",
        "退款": "{thing}一直没有发货,我不想要了,请取消订单{n}。",
        "道歉": "{thing}晚到了三天,东西没问题,但是让人很生气。订单{n}。",
    }
    things = ("杯子", "台灯", "耳机", "书包", "雨伞", "键盘")
    random = Random(2)
    for number in count():
        best = random.choice(list(texts))
        noise = 0.1 * random.random()
        text = texts[best].format(thing=random.choice(things), n=random.randrange(10000))
        worth = {one: (0.85 if one == best else 0.35) + noise for one in texts}
        yield {"number": number, "question": text, "worth": worth, "right": [best]}


def items() -> Iterator[Ticket]:
    """Yield items to describe. Three in ten are hard, and only one model can do those."""
    for number in count():
        hardness = "hard" if luck(f"item {number}") < 0.3 else "easy"
        yield {
            "number": number,
            "question": f"Describe item {number} as JSON; it is {hardness}.",
            "deadly": number % 10 == 0,
            "right": ["careful"],
        }
