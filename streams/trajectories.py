"""The join: everything of one rollout becomes its trajectory, and again whenever its reward changes."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import ClassVar

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

from schemas.clock import from_milliseconds
from schemas.decisions import DecisionEvent
from schemas.envelope import AnyEvent
from schemas.identifiers import derived_event_id
from schemas.rewards import PRECEDENCE, RewardEvent
from schemas.rollouts import TERMINAL, TRANSITIONS, Rollout, RolloutEvent, RolloutState
from schemas.serialization import decode
from schemas.spans import SpanEvent
from schemas.topics import DECISIONS, REWARDS, ROLLOUTS, SPANS, TOPICS, TRAJECTORIES, Topic
from schemas.trajectories import Trajectory, TrajectoryEvent
from streams.errors import RejectedRecordError
from streams.processor import Outcome, Processor, dead_letter, output_id
from streams.records import Outgoing, Record


class JoinConfig(BaseModel):
    """How long the join waits.

    Attributes:
        orphan_limit: how long events wait for a rollout nobody has announced, before they are dead letters.
        idle_limit: how long an open rollout may say nothing before it is closed as failed.
        late_reward_window: how long a closed rollout is kept for late rewards.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    orphan_limit: timedelta = timedelta(hours=1)
    idle_limit: timedelta = timedelta(days=1)
    late_reward_window: timedelta = timedelta(days=14)


class Waiting(BaseModel):
    """A record whose rollout is not known yet, as it lay on the log."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    value: Base64Bytes
    headers: list[tuple[str, Base64Bytes]] = []

    @classmethod
    def of(cls, source: Record) -> "Waiting":
        """Keep a record."""
        return cls.model_construct(
            topic=source.topic,
            partition=source.partition,
            offset=source.offset,
            timestamp_ms=source.timestamp_ms,
            value=source.value or b"",
            headers=list(source.headers),
        )

    def record(self, key: str) -> Record:
        """Return the record."""
        return Record(
            self.topic,
            self.partition,
            self.offset,
            self.timestamp_ms,
            key.encode(),
            self.value,
            tuple(self.headers),
        )


class JoinState(BaseModel):
    """What is known of one rollout.

    Attributes:
        rollout: the latest state, with what earlier events said filled in; None until the rollout is announced.
        seen: ids of the events joined, so that repeats are ignored.
        waiting: records that came before the rollout did.
    """

    rollout: RolloutEvent | None = None
    spans: list[SpanEvent] = Field(default_factory=list)
    decisions: list[DecisionEvent] = Field(default_factory=list)
    rewards: list[RewardEvent] = Field(default_factory=list)
    seen: list[str] = Field(default_factory=list)
    waiting: list[Waiting] = Field(default_factory=list)
    revision: int = 0
    reward: float | None = None
    reward_revision: int = 0

    @property
    def closed(self) -> bool:
        """Whether the rollout has ended."""
        return self.rollout is not None and self.rollout.payload.state in TERMINAL


class TrajectoryJoin(Processor[JoinState]):
    """Joins everything with one rollout id.

    A trajectory is emitted when the rollout ends, and again when something that counts comes later: a reward, or a
    span that was still on its way. Events of an unknown rollout wait; those that wait too long are dead letters.
    """

    name = "trajectories"
    topics: ClassVar[tuple[Topic, ...]] = (ROLLOUTS, SPANS, DECISIONS, REWARDS)

    def __init__(self, config: JoinConfig | None = None) -> None:
        self.config = config or JoinConfig()

    def handle(self, state: JoinState | None, event: AnyEvent, source: Record) -> Outcome[JoinState]:
        """Take in one event of a rollout."""
        state = state or JoinState()
        arrived = from_milliseconds(source.timestamp_ms)
        if event.event_id in state.seen:
            return Outcome(state=state, deadline=self._deadline(state, arrived))
        if state.rollout is None and not isinstance(event, RolloutEvent):
            waiting = [*state.waiting, Waiting.of(source)]
            # The clock of an orphan starts with the first event that waits, not the last.
            first = from_milliseconds(waiting[0].timestamp_ms)
            return Outcome(
                state=state.model_copy(update={"waiting": waiting}), deadline=first + self.config.orphan_limit
            )
        joined = _joined(state, [event])
        if joined.waiting:
            earlier = [decode(TOPICS[waiting.topic].event, waiting.value) for waiting in joined.waiting]
            joined = _joined(joined, earlier).model_copy(update={"waiting": []})
        return self._emitted(state, joined, output_id(self, source, event.time), event.time, arrived)

    def expire(self, state: JoinState, key: str, now: datetime) -> Outcome[JoinState]:
        """Close an idle rollout, forget a closed one, or set orphans aside."""
        if state.rollout is None:
            error = RejectedRecordError(
                f"no rollout {key!r} was announced within {self.config.orphan_limit}; create it, then replay this"
            )
            return Outcome(tuple(dead_letter(self.name, waiting.record(key), error, 1) for waiting in state.waiting))
        if state.closed:
            return Outcome()
        failed = RolloutEvent(
            event_id=derived_event_id(now, self.name, "idle", key),
            time=now,
            tenant=state.rollout.tenant,
            rollout_id=key,
            trace_id=state.rollout.trace_id,
            payload=Rollout(state=RolloutState.FAILED, error=f"nothing was heard of it for {self.config.idle_limit}"),
        )
        closed = _joined(state, [failed])
        return self._emitted(state, closed, derived_event_id(now, self.name, "idle trajectory", key), now, now)

    def encode_state(self, state: JoinState) -> bytes:
        """Return the state as JSON."""
        return state.model_dump_json().encode()

    def decode_state(self, value: bytes) -> JoinState:
        """Return the state from JSON."""
        return JoinState.model_validate_json(value)

    def _emitted(
        self, before: JoinState, state: JoinState, event_id: str, time: datetime, arrived: datetime
    ) -> Outcome[JoinState]:
        """Return the outcome, with a trajectory when the rollout is closed and something that counts changed."""
        deadline = self._deadline(state, arrived)
        if not state.closed or state.rollout is None or state is before:
            return Outcome(state=state, deadline=deadline)
        reward = reward_that_counts(state.rewards)
        state = state.model_copy(
            update={
                "revision": state.revision + 1,
                "reward": reward,
                "reward_revision": state.reward_revision + (reward is not None and reward != before.reward),
            }
        )
        assert state.rollout is not None  # noqa: S101 - narrowed above, lost by the copy
        payload = Trajectory(
            rollout=state.rollout.payload,
            spans=state.spans,
            decisions=state.decisions,
            rewards=state.rewards,
            reward=reward,
            revision=state.revision,
            reward_revision=state.reward_revision,
        )
        event = TrajectoryEvent(
            event_id=event_id,
            time=time,
            tenant=state.rollout.tenant,
            rollout_id=state.rollout.rollout_id,
            trace_id=state.rollout.trace_id,
            payload=payload,
        )
        return Outcome((Outgoing(TRAJECTORIES, event.rollout_id, event),), state, deadline)

    def _deadline(self, state: JoinState, arrived: datetime) -> datetime:
        return arrived + (self.config.late_reward_window if state.closed else self.config.idle_limit)


def reward_that_counts(rewards: Iterable[RewardEvent]) -> float | None:
    """Return the reward of the rollout as a whole, None where there is none.

    Rewards of single spans and those superseded do not count; among the others the first source of `PRECEDENCE` does,
    and of that source the latest.
    """
    rewards = list(rewards)
    superseded = {event.payload.supersedes for event in rewards}
    valid = [event for event in rewards if event.event_id not in superseded and event.payload.target_span_id is None]
    for source in PRECEDENCE:
        of_source = [event for event in valid if event.payload.source is source]
        if of_source:
            return max(of_source, key=lambda event: (event.time, event.event_id)).payload.value
    return None


def _joined(state: JoinState, events: Iterable[AnyEvent]) -> JoinState:
    """Return the state with these events taken in."""
    rollout, seen = state.rollout, list(state.seen)
    spans, decisions, rewards = list(state.spans), list(state.decisions), list(state.rewards)
    for event in events:
        if event.event_id in seen:
            continue
        seen.append(event.event_id)
        match event:
            case RolloutEvent():
                rollout = _advanced(rollout, event)
            case SpanEvent():
                spans.append(event)
            case DecisionEvent():
                decisions.append(event)
            case RewardEvent():
                rewards.append(event)
    return state.model_copy(
        update={"rollout": rollout, "spans": spans, "decisions": decisions, "rewards": rewards, "seen": seen}
    )


def _advanced(known: RolloutEvent | None, change: RolloutEvent) -> RolloutEvent:
    """Return the rollout after a change of state; what the change does not say stays as it was.

    Raises:
        RejectedRecordError: the change is not legal (see `schemas.rollouts.TRANSITIONS`).
    """
    if known is None:
        return change
    if change.payload.state is RolloutState.STARTED and known.payload.state is not RolloutState.CREATED:
        return known  # every gateway that meets an unannounced rollout says that it started
    if change.payload.state not in TRANSITIONS[known.payload.state]:
        raise RejectedRecordError(
            f"rollout {change.rollout_id} cannot go from {known.payload.state} to {change.payload.state}"
        )
    silent = Rollout(state=change.payload.state)
    said = {name: value for name, value in change.payload if value != getattr(silent, name, None)}
    checkpoints = known.payload.checkpoints | change.payload.checkpoints
    payload = known.payload.model_copy(update=said | {"state": change.payload.state, "checkpoints": checkpoints})
    return change.model_copy(update={"payload": payload, "trace_id": change.trace_id or known.trace_id})
