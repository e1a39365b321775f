"""Outcomes of a rollout, made by the join: one for each logical name that the rollout used."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from math import fsum

from schemas.decisions import Decision, DecisionEvent
from schemas.identifiers import derived_event_id
from schemas.outcomes import OutcomeEvent, RolloutOutcome
from schemas.rewards import RewardEvent
from schemas.rollouts import TERMINAL, Rollout, RolloutEvent
from schemas.serialization import decode
from schemas.spans import Attribute, SpanEvent
from schemas.topics import OUTCOMES
from streams.storage.records import Outgoing

MOST_COST = 1e6
"""A call that is said to have cost more is taken to have cost nothing."""

Answered = dict[str, list[str]]
"""Versions that answered the model calls of a rollout, by the model that was asked for."""

Told = dict[str, str]
"""What was told of a rollout last, by logical name."""


def new_outcomes(
    rollout: RolloutEvent,
    begun: datetime,
    counted: Sequence[RewardEvent],
    decisions: Sequence[bytes],
    cost: float,
    answered: Answered,
    told: Told,
    time: datetime,
) -> Iterator[Outgoing]:
    """Yield the outcomes that have changed, and note in `told` that they were told.

    Args:
        counted: the rewards that count, of the rollout and of its spans.
        decisions: encoded events, of the policies that decided in it.
        cost: of all its model calls.
        answered: which versions answered them.
        time: of the event that changed something.
    """
    payload = rollout.payload
    reward, about = _reward(counted)
    for name, version in payload.assigned.items():
        mine = _decisions_of(name, decisions) if payload.split == "validation" else []
        # A tenant's own version of a model, NAME@TENANT, is asked for as NAME.
        by = answered.get(name.partition("@")[0], [])
        replaced = any(other != version for other in by)
        sign = _sign(payload, reward, about, replaced)
        if payload.state in TERMINAL:
            # The cost and the decisions of an open rollout grow with each call. They are told with
            # the next change of what matters.
            sign += f" {len(mine)} {cost!r}"
        before = told.get(name, "None")
        if before == sign:
            continue
        told[name] = sign
        outcome = RolloutOutcome(
            name=name,
            version=version,
            split=payload.split,
            begun=begun,
            state=payload.state,
            replaced=replaced,
            fault=payload.fault,
            reward=reward,
            rewarded=about.time if about is not None else None,
            # The sign begins with the reward; None there means that none was told before.
            corrected=not before.startswith("None"),
            criteria=about.payload.criteria if about is not None else {},
            cost=cost,
            decisions=mine,
        )
        yield _outgoing(rollout, outcome, sign, time)


def _sign(payload: Rollout, reward: float | None, about: RewardEvent | None, replaced: bool) -> str:
    """Return what must change of an outcome before it is told again."""
    why = about.event_id if about is not None else None
    return f"{reward} {why} {payload.state} {payload.fault} {payload.split} {replaced}"


def _outgoing(
    rollout: RolloutEvent, outcome: RolloutOutcome, sign: str, time: datetime
) -> Outgoing:
    event = OutcomeEvent(
        event_id=derived_event_id(time, "outcomes", rollout.rollout_key, outcome.name, sign),
        time=time,
        tenant=rollout.tenant,
        rollout_id=rollout.rollout_id,
        trace_id=rollout.trace_id,
        payload=outcome,
    )
    return Outgoing.of(OUTCOMES, outcome.name, event)


def _reward(counted: Sequence[RewardEvent]) -> tuple[float | None, RewardEvent | None]:
    """Return the reward of a rollout and the event that gave it. A reward of the whole rollout
    counts first; else the mean of the rewards of its parts.
    """
    whole = [event for event in counted if event.payload.target_span_id is None]
    if whole:
        return whole[0].payload.value, whole[0]
    if not counted:
        return None, None
    mean = fsum(event.payload.value for event in counted) / len(counted)
    return mean, max(counted, key=lambda event: event.time)


def _decisions_of(name: str, decisions: Sequence[bytes]) -> list[Decision]:
    # The name stands in the bytes, so that decisions of other policies need not be decoded.
    found = (decode(DecisionEvent, d).payload for d in decisions if name.encode() in d)
    return [decision for decision in found if decision.policy == name]


def cost_of(span: SpanEvent) -> float:
    """Return the cost of a call, as its span says."""
    cost = span.payload.attributes.get(Attribute.COST)
    # Any caller may send spans, with anything in them.
    if isinstance(cost, bool) or not isinstance(cost, int | float):
        return 0.0
    return float(cost) if 0.0 <= cost < MOST_COST else 0.0


def note_answer(answered: Answered, span: SpanEvent) -> None:
    """Note which version answered a model call."""
    model, version = (
        span.payload.text(Attribute.REQUEST_MODEL),
        span.payload.text(Attribute.CHECKPOINT),
    )
    if model and version and version not in answered.setdefault(model, []):
        answered[model].append(version)
