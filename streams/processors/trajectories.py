"""The join: makes a trajectory of all events of a rollout, and makes it again when its reward
changes.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import ClassVar

import orjson
from orjson import Fragment
from pydantic import BaseModel, ConfigDict, Field

from schemas.clock import from_milliseconds
from schemas.decisions import DecisionEvent
from schemas.envelope import AnyEvent
from schemas.identifiers import derived_event_id
from schemas.rewards import RewardEvent
from schemas.rollouts import Rollout, RolloutEvent, RolloutState
from schemas.serialization import decode_all, encode
from schemas.spans import SpanEvent
from schemas.topics import DECISIONS, REWARDS, ROLLOUTS, SPANS, TOPICS, TRAJECTORIES, Topic
from streams.processing.processor import Outcome, Processor, dead_letter, output_id
from streams.processors.counted_rewards import counting_rewards, rewards_that_count, values
from streams.processors.join_state import JoinState, decode_join, encode_join
from streams.processors.outcomes import new_outcomes
from streams.storage.errors import RejectedRecordError
from streams.storage.records import MAX_RECORD_BYTES, REWARD_REVISION_HEADER, Outgoing, Record


class JoinConfig(BaseModel):
    """How long the join waits.

    Attributes:
        orphan_limit: how long events wait for a rollout nobody has announced, before they are dead
            letters.
        idle_limit: how long an open rollout may say nothing before it is closed as failed.
        rewarded_silence: how long an open rollout that has a reward may say nothing before it is
            closed as succeeded. An end that is told later still counts.
        straggler_limit: how long an ended rollout waits for spans and decisions that were recorded
            before its end.
        late_reward_window: how long a closed rollout is kept for late rewards.
        max_bytes: most that is kept of one rollout; spans and decisions beyond that are dead
            letters.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    orphan_limit: timedelta = timedelta(hours=1)
    idle_limit: timedelta = timedelta(days=1)
    rewarded_silence: timedelta = timedelta(seconds=10)
    straggler_limit: timedelta = timedelta(minutes=1)
    late_reward_window: timedelta = timedelta(days=14)
    max_bytes: int = Field(default=12 * 1024 * 1024, gt=0, le=MAX_RECORD_BYTES // 2)


class TrajectoryJoin(Processor[JoinState]):
    """Joins everything with one rollout id.

    A trajectory is emitted when the rollout ends, and again when something that counts comes later:
    a reward, or a span that was still on its way. Events of an unknown rollout wait; those that
    wait too long are dead letters.
    """

    name = "trajectories"
    topics: ClassVar[tuple[Topic, ...]] = (ROLLOUTS, SPANS, DECISIONS, REWARDS)

    def __init__(self, config: JoinConfig | None = None) -> None:
        self.config = config or JoinConfig()

    def handle(
        self, state: JoinState | None, event: AnyEvent, source: Record
    ) -> Outcome[JoinState]:
        """Take in one event of a rollout."""
        return self.handle_all(state, [event], source)

    def handle_all(
        self, state: JoinState | None, events: Sequence[AnyEvent], source: Record
    ) -> Outcome[JoinState]:
        """Take in the events of a record. Together they change the trajectory at most once."""
        state = state or JoinState()
        state.size += len(source.value or b"")
        # Rollout events and rewards are let through: they are small, and without them nothing ends.
        if state.size > self.config.max_bytes and isinstance(events[0], SpanEvent | DecisionEvent):
            raise RejectedRecordError(
                f"rollout {events[0].rollout_id} would keep {state.size} bytes; the most is"
                " join.max_bytes,"
                f" {self.config.max_bytes}"
            )
        if state.rollout is None and not isinstance(events[0], RolloutEvent):
            # Kept as a record, and not as an event: it may still become a dead letter, with its
            # bytes.
            state.waiting.append(source)
            # The clock of an orphan starts with the first event that waits, not the last.
            first = from_milliseconds(state.waiting[0].timestamp_ms)
            return Outcome(state=state, deadline=first + self.config.orphan_limit)
        new = [event for event in events if state.take(event)]
        # After the event that announces the rollout, which the waiting ones need.
        for waiting in state.waiting:
            new += [
                event
                for event in decode_all(TOPICS[waiting.topic].event, waiting.value)
                if state.take(event)
            ]
        state.waiting = []
        outputs: list[Outgoing] = []
        if new and state.closed and not state.awaits_stragglers:
            outputs.append(_emit(state, output_id(self, source, events[-1].time), events[-1].time))
        # Spans and decisions of an open rollout change no outcome, and they are the most.
        tells = state.closed or any(isinstance(e, RolloutEvent | RewardEvent) for e in new)
        if tells and not state.awaits_stragglers:
            outputs += _outcomes(state, events[-1].time)
        return Outcome(
            tuple(outputs), state, self._deadline(state, from_milliseconds(source.timestamp_ms))
        )

    def expire(self, state: JoinState, key: str, now: datetime) -> Outcome[JoinState]:
        """Handle a rollout's deadline: close an idle rollout, forget a closed one, or set orphans
        aside.
        """
        if state.rollout is None:
            error = RejectedRecordError(
                f"no rollout {key!r} was announced within {self.config.orphan_limit}; create"
                " it, then replay this"
            )
            return Outcome(
                tuple(dead_letter(self.name, waiting, error, 1) for waiting in state.waiting)
            )
        if state.awaits_stragglers:
            trajectory = _emit(state, derived_event_id(now, self.name, "incomplete", key), now)
            return Outcome((trajectory, *_outcomes(state, now)), state, self._deadline(state, now))
        if state.closed:
            return Outcome()
        state.take(self._assumed_end(state.rollout, _is_rewarded(state), now))
        state.assumed = True
        trajectory = _emit(state, derived_event_id(now, self.name, "idle trajectory", key), now)
        return Outcome((trajectory, *_outcomes(state, now)), state, self._deadline(state, now))

    def _assumed_end(self, rollout: RolloutEvent, rewarded: bool, now: datetime) -> RolloutEvent:
        """Return the end of a rollout whose agent told none."""
        end = Rollout(state=RolloutState.SUCCEEDED)
        if not rewarded:
            error = f"nothing was heard of it for {self.config.idle_limit}"
            end = Rollout(state=RolloutState.FAILED, error=error)
        return RolloutEvent(
            event_id=derived_event_id(now, self.name, "idle", rollout.rollout_key),
            time=now,
            tenant=rollout.tenant,
            rollout_id=rollout.rollout_id,
            trace_id=rollout.trace_id,
            payload=end,
        )

    def encode_state(self, state: JoinState) -> bytes:
        """Return a line of JSON, then the kept bytes one after another."""
        return encode_join(state)

    def decode_state(self, value: bytes) -> JoinState:
        """Return the state that `encode_state` wrote."""
        return decode_join(value)

    def _deadline(self, state: JoinState, arrived: datetime) -> datetime:
        if state.awaits_stragglers:
            return arrived + self.config.straggler_limit
        if state.closed:
            return arrived + self.config.late_reward_window
        return arrived + (
            self.config.rewarded_silence if _is_rewarded(state) else self.config.idle_limit
        )


def _is_rewarded(state: JoinState) -> bool:
    return bool(state.rewards) and bool(counting_rewards(state.rewards))


def _outcomes(state: JoinState, time: datetime) -> Iterator[Outgoing]:
    """Yield what has changed of the outcomes of an announced rollout."""
    if state.rollout is None or not state.rollout.payload.assigned:
        return
    assert state.begun is not None  # noqa: S101 - noted with the announcement
    counted = list(counting_rewards(state.rewards).values())
    yield from new_outcomes(
        state.rollout,
        state.begun,
        counted,
        state.decisions,
        state.cost,
        state.answered,
        state.told,
        time,
    )


def _emit(state: JoinState, event_id: str, time: datetime) -> Outgoing:
    """Return the trajectory of a closed rollout and note in the state that it was emitted.

    It is put together from encoded parts: they were validated when they arrived.
    """
    assert state.rollout is not None  # noqa: S101 - closed
    rollout, counted = state.rollout, rewards_that_count(state.rewards)
    state.revision += 1
    # Values only: another event with the same value teaches nothing new.
    state.reward_revision += values(counted) != values(state.counted)
    state.counted = counted
    payload = {
        "rollout": Fragment(rollout.payload.model_dump_json()),
        "spans": [Fragment(span) for span in state.spans],
        "decisions": [Fragment(decision) for decision in state.decisions],
        "rewards": [Fragment(encode(event)) for event in state.rewards],
        "reward": counted[""][1] if "" in counted else None,
        "span_rewards": {span: value for span, (_, value) in counted.items() if span},
        "revision": state.revision,
        "reward_revision": state.reward_revision,
    }
    event = {
        "event_id": event_id,
        "type": "trajectory",
        "schema_version": 1,
        "time": time,
        "tenant": rollout.tenant,
        "rollout_id": rollout.rollout_id,
        "trace_id": rollout.trace_id,
        "span_id": None,
        "payload": payload,
    }
    headers = ((REWARD_REVISION_HEADER, str(state.reward_revision).encode()),)
    return Outgoing(
        TRAJECTORIES,
        rollout.rollout_key,
        event_id,
        orjson.dumps(event, option=orjson.OPT_UTC_Z),
        headers,
    )
