"""The API for rewards and decisions."""

from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from infra.gateway.calls import decisions
from infra.gateway.calls.decisions import NewDecision, asker_of
from infra.gateway.calls.rollouts import assign
from infra.gateway.http.access import Agent, Caller, Feedback
from infra.gateway.http.bodies import BoundedRoute, read_body
from infra.gateway.http.context import SPLIT_HEADER, call_context
from infra.gateway.http.documents import document_of
from infra.gateway.state.services import Shared
from schemas.clock import from_milliseconds
from schemas.envelope import EventId, Name, SpanId, UnitInterval
from schemas.identifiers import derived_event_id
from schemas.rewards import Reward, RewardEvent, RewardSource
from schemas.topics import DECISIONS, REWARDS

router = APIRouter(prefix="/everloop/v1", route_class=BoundedRoute)

# They are one transaction. More would keep the log locked for too long.
MOST_AT_ONCE = 1000
_EPOCH = from_milliseconds(0)

LARGE_DECISION_BYTES = 16 * 1024
"""From this size on, a reader makes a decision: it takes about 2 ms."""


class NewReward(BaseModel):
    """A reward for a rollout, or for one span of it.

    Exactly one of three says what it is: `value`, a score in [0, 1]; `thumb`, 1 or 0; or
    `retracts`, the event id of a reward that no longer counts. With an idempotency key, a reward
    that is sent twice counts once.
    """

    model_config = ConfigDict(extra="forbid")

    rollout_id: Name
    value: UnitInterval | None = None
    thumb: Literal["up", "down"] | None = None
    retracts: EventId | None = None
    criteria: dict[str, UnitInterval] = {}
    source: RewardSource = RewardSource.ENVIRONMENT
    grader: Name = "api"
    span_id: SpanId | None = None
    supersedes: EventId | None = None
    comment: str = Field(default="", max_length=65_536)
    edit: JsonValue = None
    idempotency_key: str | None = Field(default=None, max_length=1024)

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        said = [name for name in ("value", "thumb", "retracts") if getattr(self, name) is not None]
        if len(said) != 1:
            raise ValueError(
                f"give exactly one of value, thumb and retracts, not {', '.join(said) or 'none'}"
            )
        if self.retracts is not None and self.supersedes is not None:
            raise ValueError("retracts and supersedes say two things; give one")
        if self.edit is not None and self.span_id is None:
            raise ValueError(
                "edit says how the answer of a span should have been; give its span_id"
            )
        return self

    def event(self, caller: Caller) -> RewardEvent:
        """Return it as an event."""
        # Programs send numbers. A thumb or a better answer comes from a person.
        human = self.thumb is not None or self.edit is not None
        payload = Reward(
            value=self.value if self.value is not None else float(self.thumb == "up"),
            criteria=self.criteria,
            source=RewardSource.HUMAN
            if human and "source" not in self.model_fields_set
            else self.source,
            grader=self.grader,
            target_span_id=self.span_id,
            supersedes=self.supersedes or self.retracts,
            comment=self.comment,
            edit=self.edit,
            retracted=self.retracts is not None,
        )
        event = RewardEvent(tenant=caller.tenant, rollout_id=self.rollout_id, payload=payload)
        if self.idempotency_key is None:
            return event
        # A fixed time: the same key gives the same id, whenever it is sent again.
        repeatable = derived_event_id(
            _EPOCH, "reward", event.rollout_key, self.idempotency_key.encode().hex()
        )
        return event.model_copy(update={"event_id": repeatable})


def _decision_schema() -> dict[str, Any]:
    """Return what OpenAPI says of a request for a decision, without references."""
    schema = NewDecision.model_json_schema()
    schema["properties"]["candidates"]["items"] = schema.pop("$defs")["Candidate"]
    return schema


_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": _decision_schema()}},
    }
}


@router.post("/rewards", status_code=202)
async def reward(new: NewReward, services: Shared, caller: Feedback) -> JSONResponse:
    """Record a reward; durable when this answers. The rollout may be unknown yet, or long over."""
    event = new.event(caller)
    await services.record_durably(REWARDS, event)
    return JSONResponse({"event_id": event.event_id}, status_code=202)


@router.post("/rewards/bulk", status_code=202)
async def rewards(
    new: Annotated[list[NewReward], Field(min_length=1, max_length=MOST_AT_ONCE)],
    services: Shared,
    caller: Feedback,
) -> JSONResponse:
    """Record many rewards. If one is wrong, none is recorded."""
    events = [one.event(caller) for one in new]
    await services.record_durably(REWARDS, *events)
    return JSONResponse({"event_ids": [event.event_id for event in events]}, status_code=202)


@router.post("/decisions", openapi_extra=_BODY)
async def decide(request: Request, services: Shared, caller: Agent) -> Response:
    """Choose a candidate with the policy that the rollout is pinned to. It is durable then.

    A rollout that nobody has announced begins with it. The draw depends only on rollout, policy and
    context: asked again, the same policy chooses the same.
    """
    call = call_context(request, caller)
    document = document_of(await read_body(request), services.readers, LARGE_DECISION_BYTES)
    rollout_id, policy = await document.apply(asker_of)
    key = call.key(rollout_id)
    pinned, _ = services.routing.resolve(policy, "policy", key)
    made = await decisions.decide(document, services.redactor, pinned, call)
    # The version that the rollout is pinned to. If that policy broke, the baseline decided.
    assign(services, caller.tenant, rollout_id, call.trace_id, {policy: pinned.version})
    split, _ = services.routing.split(key)
    await services.record_encoded(DECISIONS, key, made.event_id, made.value)
    headers = {SPLIT_HEADER: split}
    return Response(made.answer, headers=headers, media_type="application/json")
