"""The router: trajectories become examples, each addressed to what learns from it."""

from datetime import timedelta
from typing import ClassVar

import orjson

from schemas.clock import from_milliseconds
from schemas.envelope import AnyEvent
from schemas.examples import ExampleEvent
from schemas.topics import EXAMPLES, TRAJECTORIES, Topic
from schemas.trajectories import TrajectoryEvent
from streams.processing.processor import Outcome, Processor, output_id
from streams.processors.adapter import AdapterConfig, examples_of
from streams.storage.records import REWARD_REVISION_HEADER, Outgoing, Record

Routed = dict[str, tuple[int, float | None]]
"""Example, by target, head and source event, to how often it was routed, and the reward it was
routed with last; None where that was retracted.
"""


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
        """Return whether a trajectory has a reward, as far as its headers say."""
        return (REWARD_REVISION_HEADER, b"0") not in source.headers

    def handle(self, state: Routed | None, event: AnyEvent, source: Record) -> Outcome[Routed]:
        """Route a trajectory's examples that are new, or whose reward is new or gone."""
        assert isinstance(event, TrajectoryEvent)  # noqa: S101 - the topic holds nothing else
        routed = dict(state or {})
        outputs = []
        for index, example in enumerate(examples_of(event, self.config)):
            key = f"{example.target} {example.body.head} {example.source_event_ids[-1]}"
            times, before = routed.get(key, (0, None))
            reward = None if example.retracted else example.reward
            if reward == before:
                continue
            routed[key] = (times + 1, reward)
            sent = {"reward_revision": times + 1, "reward": before if reward is None else reward}
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
        return orjson.dumps(state, option=orjson.OPT_SORT_KEYS)

    def decode_state(self, value: bytes) -> Routed:
        """Return what was routed from JSON."""
        return {key: (times, reward) for key, (times, reward) in orjson.loads(value).items()}
