"""Rewards and decisions: what agents, judges and people tell the learners, and what they ask of the policies."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from infra.gateway.context import Call
from infra.gateway.routing import unit_draw
from infra.gateway.services import Shared
from schemas.clock import from_milliseconds
from schemas.decisions import Candidate, Decision, DecisionEvent
from schemas.envelope import EventId, Name, SpanId, UnitInterval
from schemas.identifiers import derived_event_id
from schemas.rewards import Reward, RewardEvent, RewardSource
from schemas.topics import DECISIONS, REWARDS

router = APIRouter(prefix="/everloop/v1")

_EPOCH = from_milliseconds(0)


class NewReward(BaseModel):
    """A reward for a rollout. With an idempotency key, giving it twice is giving it once."""

    model_config = ConfigDict(extra="forbid")

    rollout_id: Name
    value: UnitInterval
    criteria: dict[str, UnitInterval] = {}
    source: RewardSource = RewardSource.ENVIRONMENT
    grader: Name = "api"
    span_id: SpanId | None = None
    supersedes: EventId | None = None
    comment: str = ""
    idempotency_key: str | None = None


class NewDecision(BaseModel):
    """A choice to be made."""

    model_config = ConfigDict(extra="forbid")

    rollout_id: Name
    policy: Name
    context: str = ""
    candidates: list[Candidate] = Field(min_length=1)


@router.post("/rewards", status_code=202)
async def reward(new: NewReward, services: Shared) -> JSONResponse:
    """Record a reward; durable when this answers. The rollout may be unknown yet, or long over."""
    payload = Reward(
        value=new.value,
        criteria=new.criteria,
        source=new.source,
        grader=new.grader,
        target_span_id=new.span_id,
        supersedes=new.supersedes,
        comment=new.comment,
    )
    event = RewardEvent(rollout_id=new.rollout_id, payload=payload)
    if new.idempotency_key is not None:
        repeatable = derived_event_id(_EPOCH, "reward", new.rollout_id, new.idempotency_key.encode().hex())
        event = event.model_copy(update={"event_id": repeatable})
    await services.record_durably(REWARDS, event)
    return JSONResponse({"event_id": event.event_id}, status_code=202)


@router.post("/decisions")
async def decide(new: NewDecision, services: Shared, call: Call) -> JSONResponse:
    """Choose a candidate with the policy the rollout is pinned to; the choice is durable when this answers.

    The draw depends on rollout, policy and context only: asked again, the same policy chooses the same.
    """
    target = services.routing.resolve(new.policy, "policy", new.rollout_id)
    assert target.policy is not None  # noqa: S101 - routes of kind policy have one
    probabilities = target.policy.probabilities(new.context, new.candidates)
    choice = _drawn(probabilities, unit_draw(new.policy, new.rollout_id, new.context))
    payload = Decision(
        policy=new.policy,
        policy_version=target.version,
        feature_version=target.policy.feature_version,
        context=new.context,
        candidates=new.candidates,
        probabilities=probabilities,
        choice=choice,
        propensity=probabilities[choice],
    )
    event = DecisionEvent(
        rollout_id=new.rollout_id, trace_id=call.trace_id, span_id=call.parent_span_id, payload=payload
    )
    await services.record_durably(DECISIONS, event)
    return JSONResponse(
        {
            "decision_id": event.event_id,
            "choice": choice,
            "propensity": probabilities[choice],
            "probabilities": probabilities,
            "policy_version": target.version,
        }
    )


def _drawn(probabilities: list[float], draw: float) -> int:
    """Return the index into which a number in [0, 1) falls."""
    for index, probability in enumerate(probabilities):
        draw -= probability
        if draw < 0:
            return index
    return max(range(len(probabilities)), key=probabilities.__getitem__)
