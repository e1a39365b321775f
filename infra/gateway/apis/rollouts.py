"""Rollouts: an agent says when it begins and how it ended."""

from typing import Any, Literal, Self

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from infra.gateway.calls.rollouts import drawn_split, fault_at_end
from infra.gateway.http.access import Agent
from infra.gateway.http.bodies import BoundedRoute
from infra.gateway.http.context import SPLIT_HEADER, call_context
from infra.gateway.state.services import Shared
from schemas.envelope import Name
from schemas.identifiers import new_event_id
from schemas.rollouts import Fault, Rollout, RolloutEvent, RolloutState, Split, Task
from schemas.topics import ROLLOUTS

router = APIRouter(prefix="/everloop/v1/rollouts", route_class=BoundedRoute)


class NewRollout(BaseModel):
    """A rollout about to begin. Without an id it gets one; without a split the gateway draws it."""

    model_config = ConfigDict(extra="forbid")

    rollout_id: Name | None = None
    agent: Name = "agent"
    task: Task | None = None
    split: Split | None = None
    group: Name = "default"


class RolloutEnd(BaseModel):
    """How a rollout ended.

    Attributes:
        fault: whose failure it was. Without it the gateway says so itself: why the rollout's last
            call failed, else `agent`.
    """

    model_config = ConfigDict(extra="forbid")

    state: Literal["succeeded", "failed"]
    output: JsonValue = None
    error: str | None = None
    turns: int | None = Field(default=None, ge=0)
    fault: Fault | None = None

    @model_validator(mode="after")
    def _only_a_failure_has_one(self) -> Self:
        if self.fault is not None and self.state != "failed":
            raise ValueError(
                f"fault is {self.fault!r} of a rollout that {self.state}; leave it out"
            )
        return self


@router.post("", status_code=201)
async def create(
    new: NewRollout, request: Request, services: Shared, caller: Agent
) -> JSONResponse:
    """Begin a rollout and pin it to what serves now. To begin it twice is to begin it once.

    If a call has begun it already, a split that is named here replaces the drawn one.

    Where a call has begun it already, a split that is named here replaces the one that was drawn.
    """
    call, routing = call_context(request, caller), services.routing
    rollout_id = new.rollout_id or new_event_id()
    key = call.key(rollout_id)
    versions = {name: target.version for name, target in routing.pin(key).items()}
    begun = routing.knows_begun(key)
    known = routing.split(key) if begun else (drawn_split(services, key), False)
    split, split_chosen = (new.split, True) if new.split is not None else known
    said: dict[str, Any] = {
        "agent": new.agent,
        "task": new.task,
        "split": split,
        "split_chosen": split_chosen,
        "group": new.group,
        "checkpoints": versions,
    }
    if not begun:
        routing.begin(key, new.group, split, split_chosen)
        # Both, because the lifecycle has both; nothing happens between them here.
        states = [RolloutState.CREATED, RolloutState.STARTED]
    elif (split, split_chosen) != known:
        routing.choose_split(key, split)
        states = [RolloutState.STARTED]
    else:
        states = []
    events = [
        RolloutEvent(
            tenant=caller.tenant,
            rollout_id=rollout_id,
            trace_id=call.trace_id,
            payload=Rollout(state=state, **said),
        )
        for state in states
    ]
    if events:
        await services.record_durably(ROLLOUTS, *events)
    answer = {"rollout_id": rollout_id, "split": split, "checkpoints": versions}
    headers = {SPLIT_HEADER: split}
    return JSONResponse(answer, status_code=200 if begun else 201, headers=headers)


@router.post("/{rollout_id:path}/end", status_code=202)
async def end(
    rollout_id: Name, ending: RolloutEnd, request: Request, services: Shared, caller: Agent
) -> JSONResponse:
    """End a rollout. Its trajectory has everything that was recorded until now. Later calls begin
    another rollout.
    """
    call = call_context(request, caller)
    key = call.key(rollout_id)
    failed = ending.state == "failed"
    payload = Rollout(
        state=RolloutState(ending.state),
        output=ending.output,
        error=ending.error,
        fault=fault_at_end(services, key, ending.fault) if failed else None,
        turns=ending.turns,
        recorded=services.routing.recorded(key),
    )
    event = RolloutEvent(
        tenant=caller.tenant, rollout_id=rollout_id, trace_id=call.trace_id, payload=payload
    )
    await services.record_durably(ROLLOUTS, event)
    # After the event is durable: if that fails, the caller ends the rollout again.
    services.routing.release(key)
    services.conversations.forget(caller.tenant, rollout_id)
    return JSONResponse({"event_id": event.event_id}, status_code=202)
