"""The small world of `learners.checks`: three candidates, of which one is better in each of two
contexts.
"""

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from schemas.decisions import Candidate, Decision
from schemas.examples import BanditExample, Example, ExampleEvent, Replaced

EXAMPLES = 240
"""Enough for several checkpoints of a learner that announces one after every hundred examples."""

WORDS = (
    ("send the money back at once", "offer a new one", "ask for a picture"),
    ("wait for the parcel", "send the money back", "ask the carrier"),
)
CONTEXTS = ("the parcel is broken", "the parcel is late")
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


def world(target: str, count: int = EXAMPLES, first: int = 0) -> list[ExampleEvent]:
    """Return rewarded decisions of the uniform baseline, always the same.

    Args:
        first: number of the first one; decisions of different numbers have different ids.
    """
    random = Random(first)  # noqa: S311 - a repeatable world, not a secret
    return [_example(target, number, random) for number in range(first, first + count)]


def _example(target: str, number: int, random: Random) -> ExampleEvent:
    which, choice = number % 2, random.randrange(3)
    share = 1.0 / 3.0
    decision = Decision(
        policy=target,
        policy_version="uniform",
        feature_version=0,
        context=CONTEXTS[which],
        candidates=candidates(which),
        probabilities=[share] * 3,
        choice=choice,
        propensity=share,
    )
    # The first candidate is best in one context, the second in the other.
    reward = min(1.0, max(0.0, 0.8 * (choice == which) + 0.2 * random.random()))
    body = BanditExample(decision_id=_id(number, 1), decision=decision)
    payload = Example(
        target=target,
        reward=reward,
        reward_revision=1,
        source_event_ids=[_id(number, 1)],
        body=body,
    )
    return ExampleEvent(
        event_id=_id(number, 0),
        time=BEGINNING + timedelta(seconds=number),
        rollout_id=f"rollout-{number}",
        payload=payload,
    )


def candidates(which: int) -> list[Candidate]:
    """Return the three candidates of a context."""
    return [Candidate(id=f"c{n}", text=text) for n, text in enumerate(WORDS[which])]


def changed(event: ExampleEvent, **payload: Any) -> ExampleEvent:
    """Return an example with other values in its payload, and another event id."""
    number = int(event.event_id[:8], 16)
    revision = payload.get("reward_revision", 1)
    return event.model_copy(
        update={
            "event_id": _id(number, revision + 1),
            "payload": event.payload.model_copy(update=payload),
        }
    )


def inverted(event: ExampleEvent) -> ExampleEvent:
    """Return an example with the opposite reward."""
    return changed(event, reward=1.0 - event.payload.reward)


def replaced(event: ExampleEvent) -> Replaced:
    """Return what a correction says of the example that it replaces."""
    return Replaced(reward=event.payload.reward, first=event.time)


def retraction(event: ExampleEvent) -> ExampleEvent:
    """Return the example whose reward was taken back."""
    return changed(event, reward_revision=2, retracted=True, replaces=replaced(event))


def _id(number: int, kind: int) -> str:
    return f"{number:08x}-0000-7000-8000-{kind:012x}"
