"""The join's state of one rollout, and its bytes."""

from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate
from typing import Any

import orjson
from orjson import Fragment

from schemas.decisions import DecisionEvent
from schemas.envelope import AnyEvent
from schemas.rewards import RewardEvent
from schemas.rollouts import TERMINAL, RolloutEvent
from schemas.serialization import encode
from schemas.spans import SpanEvent
from streams.processors.counted_rewards import Counted
from streams.processors.outcomes import Answered, Told, cost_of, note_answer
from streams.processors.rollout_changes import rollout_after
from streams.storage.records import Record


@dataclass(slots=True)
class JoinState:
    """The join's state of one rollout. Events that are only passed on are kept as bytes.

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
        """Whether everything that was recorded before the end has arrived. True if nobody knows how
        much that is.
        """
        recorded = self.rollout.payload.recorded if self.rollout is not None else None
        return recorded is None or (
            len(self.spans) >= recorded.spans and len(self.decisions) >= recorded.decisions
        )

    def take(self, event: AnyEvent) -> bool:
        """Take in an event; return whether it is new.

        Raises:
            RejectedRecordError: it says that the rollout did what it cannot have done.
        """
        # Agents and gateways send an event again when they got no answer.
        if event.event_id in self.seen:
            return False
        match event:
            case RolloutEvent():
                self.rollout = rollout_after(self.rollout, event, self.assumed)
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


def encode_join(state: JoinState) -> bytes:
    """Return a line of JSON, then the kept bytes one after another."""
    # Kept as they came: to decode and encode hundreds of spans for each event would cost most of
    # the time.
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


def decode_join(value: bytes) -> JoinState:
    """Return the state that `encode_join` wrote."""
    line, _, body = value.partition(b"\n")
    header = orjson.loads(line)
    ends = list(accumulate(header["lengths"]))
    kept = [body[end - length : end] for length, end in zip(header["lengths"], ends, strict=True)]
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
        # States of earlier versions lack these fields.
        begun=_time(header.get("begun") or (header["rollout"] or {}).get("time")),
        assumed=header.get("assumed", False),
        cost=header.get("cost", 0.0),
        answered=header.get("answered", {}),
        told=header.get("told", {}),
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
