"""The join: everything of one rollout becomes its trajectory, and again whenever its reward
changes.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any, ClassVar

import orjson
from orjson import Fragment
from pydantic import BaseModel, ConfigDict, Field

from schemas.clock import from_milliseconds
from schemas.decisions import DecisionEvent
from schemas.envelope import AnyEvent
from schemas.identifiers import derived_event_id
from schemas.rewards import PRECEDENCE, RewardEvent
from schemas.rollouts import TERMINAL, TRANSITIONS, Rollout, RolloutEvent, RolloutState
from schemas.serialization import decode_all, encode
from schemas.spans import SpanEvent
from schemas.topics import DECISIONS, REWARDS, ROLLOUTS, SPANS, TOPICS, TRAJECTORIES, Topic
from streams.processing.processor import Outcome, Processor, dead_letter, output_id
from streams.processors.outcomes import Answered, Told, cost_of, new_outcomes, note_answer
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


Counted = dict[str, tuple[str, float]]
"""The rewards that count: by span id, that of the rollout by "", event id and value."""


@dataclass(slots=True)
class JoinState:
    """What is known of one rollout. What is only passed on is kept as the bytes it will be passed
    on as.

    Attributes:
        rollout: the latest state, with what earlier events said filled in; None until the rollout
            is announced.
        begun: time of the first event of the rollout itself.
        assumed: whether the end is the join's own, because nothing was heard; one that is told
            later takes its place.
        spans, decisions: encoded events in the order they arrived.
        seen: ids of the events joined, so that repeats are ignored; the values mean nothing.
        waiting: records that came before the rollout did.
        size: bytes of the records taken.
        cost: of the model calls.
        answered: which versions answered them.
        told: the outcomes that were told last (`streams.processors.outcomes`).
    """

    rollout: RolloutEvent | None = None
    begun: datetime | None = None
    assumed: bool = False
    spans: list[bytes] = field(default_factory=list)
    decisions: list[bytes] = field(default_factory=list)
    rewards: list[RewardEvent] = field(default_factory=list)
    seen: dict[str, None] = field(default_factory=dict)
    waiting: list[Record] = field(default_factory=list)
    size: int = 0
    revision: int = 0
    counted: Counted = field(default_factory=dict)
    reward_revision: int = 0
    cost: float = 0.0
    answered: Answered = field(default_factory=dict)
    told: Told = field(default_factory=dict)

    @property
    def closed(self) -> bool:
        """Whether the rollout has ended."""
        return self.rollout is not None and self.rollout.payload.state in TERMINAL

    @property
    def awaits_stragglers(self) -> bool:
        """Whether the rollout has ended, and its first trajectory waits for what was recorded
        before.
        """
        return self.closed and self.revision == 0 and not self.complete

    @property
    def complete(self) -> bool:
        """Whether everything that was recorded before the end is here, as far as that is known."""
        recorded = self.rollout.payload.recorded if self.rollout is not None else None
        return recorded is None or (
            len(self.spans) >= recorded.spans and len(self.decisions) >= recorded.decisions
        )

    def take(self, event: AnyEvent) -> bool:
        """Take in an event; return whether it is new.

        Raises:
            RejectedRecordError: it says that the rollout did what it cannot have done.
        """
        if event.event_id in self.seen:
            return False
        match event:
            case RolloutEvent():
                self.rollout = _advanced(self.rollout, event, self.assumed)
                self.assumed &= event.payload.state not in TERMINAL
                self.begun = self.begun or event.time
            case SpanEvent():
                self.spans.append(encode(event))
                self.cost += cost_of(event)
                note_answer(self.answered, event)
            case DecisionEvent():
                self.decisions.append(encode(event))
            case RewardEvent():
                self.rewards.append(event)
        self.seen[event.event_id] = None
        return True


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
        """Take in the events of a record; however many they are, they change the trajectory
        once.
        """
        state = state or JoinState()
        state.size += len(source.value or b"")
        if state.size > self.config.max_bytes and isinstance(events[0], SpanEvent | DecisionEvent):
            raise RejectedRecordError(
                f"rollout {events[0].rollout_id} would keep {state.size} bytes; the most is"
                " join.max_bytes,"
                f" {self.config.max_bytes}"
            )
        if state.rollout is None and not isinstance(events[0], RolloutEvent):
            state.waiting.append(source)
            # The clock of an orphan starts with the first event that waits, not the last.
            first = from_milliseconds(state.waiting[0].timestamp_ms)
            return Outcome(state=state, deadline=first + self.config.orphan_limit)
        new = [event for event in events if state.take(event)]
        for waiting in state.waiting:
            new += [
                event
                for event in decode_all(TOPICS[waiting.topic].event, waiting.value)
                if state.take(event)
            ]
        state.waiting = []
        outputs: list[Outgoing] = []
        if new and state.closed and not state.awaits_stragglers:
            outputs.append(
                _emitted(state, output_id(self, source, events[-1].time), events[-1].time)
            )
        # Spans and decisions of an open rollout change no outcome, and they are the most.
        tells = state.closed or any(isinstance(e, RolloutEvent | RewardEvent) for e in new)
        if tells and not state.awaits_stragglers:
            outputs += _outcomes(state, events[-1].time)
        return Outcome(
            tuple(outputs), state, self._deadline(state, from_milliseconds(source.timestamp_ms))
        )

    def expire(self, state: JoinState, key: str, now: datetime) -> Outcome[JoinState]:
        """Close an idle rollout, forget a closed one, or set orphans aside."""
        if state.rollout is None:
            error = RejectedRecordError(
                f"no rollout {key!r} was announced within {self.config.orphan_limit}; create"
                " it, then replay this"
            )
            return Outcome(
                tuple(dead_letter(self.name, waiting, error, 1) for waiting in state.waiting)
            )
        if state.awaits_stragglers:
            trajectory = _emitted(state, derived_event_id(now, self.name, "incomplete", key), now)
            return Outcome((trajectory, *_outcomes(state, now)), state, self._deadline(state, now))
        if state.closed:
            return Outcome()
        state.take(self._assumed_end(state.rollout, _is_rewarded(state), now))
        state.assumed = True
        trajectory = _emitted(state, derived_event_id(now, self.name, "idle trajectory", key), now)
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
        kept = [*state.spans, *state.decisions, *(record.value or b"" for record in state.waiting)]
        header = {
            "rollout": state.rollout and Fragment(encode(state.rollout)),
            "rewards": [Fragment(encode(reward)) for reward in state.rewards],
            "seen": list(state.seen),
            "revision": state.revision,
            "counted": state.counted,
            "reward_revision": state.reward_revision,
            "size": state.size,
            "begun": state.begun,
            "assumed": state.assumed,
            "cost": state.cost,
            "answered": state.answered,
            "told": state.told,
            "spans": len(state.spans),
            "waiting": [_without_value(record) for record in state.waiting],
            "lengths": [len(value) for value in kept],
        }
        return b"\n".join((orjson.dumps(header), b"".join(kept)))

    def decode_state(self, value: bytes) -> JoinState:
        """Return the state that `encode_state` wrote."""
        line, _, body = value.partition(b"\n")
        header = orjson.loads(line)
        ends = list(accumulate(header["lengths"]))
        kept = [
            body[end - length : end] for length, end in zip(header["lengths"], ends, strict=True)
        ]
        spans, decisions = header["spans"], len(kept) - len(header["waiting"])
        return JoinState(
            rollout=RolloutEvent.model_validate(header["rollout"]) if header["rollout"] else None,
            spans=kept[:spans],
            decisions=kept[spans:decisions],
            rewards=[RewardEvent.model_validate(reward) for reward in header["rewards"]],
            seen=dict.fromkeys(header["seen"]),
            size=header["size"],
            waiting=[
                _with_value(*pair) for pair in zip(header["waiting"], kept[decisions:], strict=True)
            ],
            revision=header["revision"],
            counted={
                about: (event_id, value) for about, (event_id, value) in header["counted"].items()
            },
            reward_revision=header["reward_revision"],
            begun=_time(header.get("begun") or (header["rollout"] or {}).get("time")),
            assumed=header.get("assumed", False),
            cost=header.get("cost", 0.0),
            answered=header.get("answered", {}),
            told=header.get("told", {}),
        )

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


def _emitted(state: JoinState, event_id: str, time: datetime) -> Outgoing:
    """Return the trajectory of a closed rollout and note in the state that it was emitted.

    It is put together from encoded parts: they were validated when they arrived.
    """
    assert state.rollout is not None  # noqa: S101 - closed
    rollout, counted = state.rollout, rewards_that_count(state.rewards)
    state.revision += 1
    state.reward_revision += _values(counted) != _values(state.counted)
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


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _without_value(record: Record) -> dict[str, Any]:
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "key": b64encode(record.key or b"").decode(),
        "headers": [(name, b64encode(value).decode()) for name, value in record.headers],
    }


def _with_value(kept: dict[str, Any], value: bytes) -> Record:
    headers = tuple((name, b64decode(header)) for name, header in kept["headers"])
    return Record(**kept | {"key": b64decode(kept["key"]), "value": value, "headers": headers})


def rewards_that_count(rewards: Iterable[RewardEvent]) -> Counted:
    """Return the event id and value of each reward that counts, by what it is about."""
    counting = counting_rewards(rewards)
    return {about: (event.event_id, event.payload.value) for about, event in counting.items()}


def counting_rewards(rewards: Iterable[RewardEvent]) -> dict[str, RewardEvent]:
    """Return the reward of the rollout as a whole, under "", and of each span that has its own.

    Superseded and retracted ones do not count; among the others the first source of `PRECEDENCE`
    does, and of that source the latest.
    """
    rewards = list(rewards)
    superseded = {event.payload.supersedes for event in rewards}
    best: dict[str, RewardEvent] = {}
    for event in rewards:
        if event.event_id in superseded or event.payload.retracted:
            continue
        about = event.payload.target_span_id or ""
        if about not in best or _weight(event) > _weight(best[about]):
            best[about] = event
    return best


def _weight(event: RewardEvent) -> tuple[int, datetime, str]:
    return -PRECEDENCE.index(event.payload.source), event.time, event.event_id


def _values(counted: Counted) -> dict[str, float]:
    return {about: value for about, (_, value) in counted.items()}


def _advanced(known: RolloutEvent | None, change: RolloutEvent, assumed: bool) -> RolloutEvent:
    """Return the rollout after a change of state; what the change does not say stays as it was.

    Args:
        assumed: whether its end was assumed by the join.

    Raises:
        RejectedRecordError: the change is not legal (see `schemas.rollouts.TRANSITIONS`).
    """
    if known is None:
        return change
    before, after = known.payload.state, change.payload.state
    if assumed and after in TERMINAL:
        before = RolloutState.STARTED
    repeats = (after is RolloutState.STARTED and before is not RolloutState.CREATED) or (
        after is RolloutState.CREATED and before is RolloutState.STARTED
    )
    if repeats:
        # Every gateway that meets a rollout says that it started, and so does an agent that
        # announces what has begun with a call. What they say more is added.
        return _merged(known, change, before)
    if after not in TRANSITIONS[before]:
        raise RejectedRecordError(f"rollout {change.rollout_id} cannot go from {before} to {after}")
    return _merged(known, change, after)


def _merged(known: RolloutEvent, change: RolloutEvent, state: RolloutState) -> RolloutEvent:
    silent = Rollout(state=change.payload.state)
    said = {name: value for name, value in change.payload if value != getattr(silent, name, None)}
    # A split that the gateway drew stands back behind one that the agent named.
    chooser = change if change.payload.split_chosen else known
    payload = known.payload.model_copy(
        update=said
        | {
            "state": state,
            "checkpoints": known.payload.checkpoints | change.payload.checkpoints,
            "assigned": change.payload.assigned | known.payload.assigned,
            "split": chooser.payload.split,
            "split_chosen": chooser.payload.split_chosen,
        }
    )
    return change.model_copy(
        update={"payload": payload, "trace_id": change.trace_id or known.trace_id}
    )
