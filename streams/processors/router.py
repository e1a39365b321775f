"""The router: trajectories become examples, each addressed to what learns from it."""

from datetime import datetime, timedelta
from typing import Any, ClassVar, NamedTuple

import orjson

from schemas.clock import from_milliseconds
from schemas.envelope import AnyEvent
from schemas.examples import ExampleEvent, Replaced
from schemas.topics import EXAMPLES, TRAJECTORIES, Topic
from schemas.trajectories import TrajectoryEvent
from streams.processing.processor import Outcome, Processor, output_id
from streams.processors.adapter import AdapterConfig, examples_of
from streams.storage.records import REWARD_REVISION_HEADER, Outgoing, Record


class Sent(NamedTuple):
    """An example as it was routed last.

    Attributes:
        times: how often it was routed.
        reward: None where it was retracted.
        worth: the reward it had before that; the same reward where it has one.
        first: time of the event that routed it first, in RFC 3339; empty where a version routed it
            that did not note it.
    """

    times: int
    reward: float | None
    worth: float = 0.0
    criteria: dict[str, float] = {}
    cost: float = 0.0
    first: str = ""

    def replaced(self) -> Replaced | None:
        """Return what a correction of this example replaces; None if that was not noted."""
        if not self.first:
            return None
        return Replaced(
            reward=self.worth,
            criteria=self.criteria,
            cost=self.cost,
            retracted=self.reward is None,
            first=datetime.fromisoformat(self.first),
        )


Routed = dict[str, Sent]
"""Examples by target, head and source event."""


class ExampleRouter(Processor[Routed]):
    """Sends each example of a rewarded trajectory once per reward, numbered from 1 by
    `reward_revision`.

    An example that was sent with a reward and has none now is sent once more, as retracted.

    A trajectory that is emitted again for another reason gives the examples that are new in it:
    those of a decision or span that came late.

    Args:
        memory: how long a rollout's examples are remembered; at least the join's window for late
            rewards.
    """

    # The name of its consumer group. Under another name it would route everything once more.
    name = "lessons"
    topics: ClassVar[tuple[Topic, ...]] = (TRAJECTORIES,)

    def __init__(self, config: AdapterConfig, memory: timedelta) -> None:
        self.config = config
        self.memory = memory

    def concerns(self, source: Record) -> bool:
        """Return whether a trajectory may have a reward, by its headers."""
        return (REWARD_REVISION_HEADER, b"0") not in source.headers

    def handle(self, state: Routed | None, event: AnyEvent, source: Record) -> Outcome[Routed]:
        """Route a trajectory's examples that are new, or whose reward is new or gone."""
        assert isinstance(event, TrajectoryEvent)  # noqa: S101 - the topic holds nothing else
        routed = dict(state or {})
        outputs = []
        for index, example in enumerate(examples_of(event, self.config)):
            key = f"{example.target} {example.body.head} {example.source_event_ids[-1]}"
            before = routed.get(key, Sent(0, None))
            reward = None if example.retracted else example.reward
            if reward == before.reward:
                continue
            # A retraction carries the reward that it takes back, so that the learner can undo it.
            worth = before.worth if reward is None else reward
            routed[key] = Sent(
                before.times + 1,
                reward,
                worth,
                example.criteria,
                example.cost,
                before.first if before.times else event.time.isoformat(),
            )
            sent = {
                "reward_revision": before.times + 1,
                "reward": worth,
                "replaces": before.replaced(),
            }
            payload = ExampleEvent(
                event_id=output_id(self, source, event.time, index),
                time=event.time,
                tenant=event.tenant,
                rollout_id=event.rollout_id,
                trace_id=event.trace_id,
                payload=example.model_copy(update=sent),
            )
            outputs.append(Outgoing.of(EXAMPLES, example.target, payload))
        return Outcome(tuple(outputs), routed, from_milliseconds(source.timestamp_ms) + self.memory)

    def encode_state(self, state: Routed) -> bytes:
        """Return what was routed as JSON."""
        kept = {key: list(sent) for key, sent in state.items()}
        return orjson.dumps(kept, option=orjson.OPT_SORT_KEYS)

    def decode_state(self, value: bytes) -> Routed:
        """Return what was routed from JSON."""
        return {key: _decode_sent(*fields) for key, fields in orjson.loads(value).items()}


def _decode_sent(times: int, reward: float | None, *more: Any) -> Sent:
    # The first states had no more than these two.
    return Sent(times, reward, *(more or (reward or 0.0,)))
