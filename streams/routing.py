"""The router: trajectories become lessons, each addressed to what learns from it."""

from datetime import timedelta
from typing import ClassVar

import orjson

from schemas.clock import from_milliseconds
from schemas.envelope import AnyEvent
from schemas.examples import ExampleEvent
from schemas.topics import EXAMPLES, TRAJECTORIES, Topic
from schemas.trajectories import TrajectoryEvent
from streams.adapter import AdapterConfig, examples_of
from streams.processor import Outcome, Processor, output_id
from streams.records import REWARD_REVISION_HEADER, Outgoing, Record


class LessonRouter(Processor[int]):
    """Sends each rewarded trajectory's lessons once per reward.

    State: the reward revision already routed, so that a trajectory emitted again for another reason (a late span)
    gives no second lesson.

    Args:
        memory: how long a rollout's revision is remembered; at least the join's window for late rewards.
    """

    name = "lessons"
    topics: ClassVar[tuple[Topic, ...]] = (TRAJECTORIES,)

    def __init__(self, config: AdapterConfig, memory: timedelta) -> None:
        self.config = config
        self.memory = memory

    def concerns(self, source: Record) -> bool:
        """Return whether a trajectory has a reward, as far as its headers say."""
        return (REWARD_REVISION_HEADER, b"0") not in source.headers

    def handle(self, state: int | None, event: AnyEvent, source: Record) -> Outcome[int]:
        """Route a trajectory's lessons if its reward is new."""
        assert isinstance(event, TrajectoryEvent)  # noqa: S101 - the topic holds nothing else
        routed = state or 0
        deadline = from_milliseconds(source.timestamp_ms) + self.memory
        if event.payload.reward_revision <= routed:
            return Outcome(state=routed, deadline=deadline)
        outputs = tuple(
            Outgoing.of(
                EXAMPLES,
                example.target,
                ExampleEvent(
                    event_id=output_id(self, source, event.time, index),
                    time=event.time,
                    tenant=event.tenant,
                    rollout_id=event.rollout_id,
                    trace_id=event.trace_id,
                    payload=example,
                ),
            )
            for index, example in enumerate(examples_of(event, self.config))
        )
        return Outcome(outputs, event.payload.reward_revision, deadline)

    def encode_state(self, state: int) -> bytes:
        """Return the revision as JSON."""
        return orjson.dumps(state)

    def decode_state(self, value: bytes) -> int:
        """Return the revision from JSON."""
        return int(orjson.loads(value))
