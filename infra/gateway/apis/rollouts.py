"""Rollouts: an agent says when it begins and how it ended."""

from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from infra.gateway.http.access import Agent
from infra.gateway.http.bodies import BoundedRoute
from infra.gateway.http.context import call_context
from infra.gateway.state.services import Shared
from schemas.envelope import Name
from schemas.identifiers import new_event_id
from schemas.rollouts import Rollout, RolloutEvent, RolloutState, Split, Task
from schemas.topics import ROLLOUTS

router = APIRouter(prefix="/everloop/v1/rollouts", route_class=BoundedRoute)


class NewRollout(BaseModel):
    """A rollout about to begin. Without an id it gets one."""

    model_config = ConfigDict(extra="forbid")

    rollout_id: Name | None = None
    agent: Name = "agent"
    task: Task | None = None
    split: Split = "train"
    group: Name = "default"


class Ending(BaseModel):
    """How a rollout ended."""

    model_config = ConfigDict(extra="forbid")

    state: Literal["succeeded", "failed"]
    output: JsonValue = None
    error: str | None = None
    turns: int | None = Field(default=None, ge=0)


@router.post("", status_code=201)
async def create(
    new: NewRollout, request: Request, services: Shared, caller: Agent
) -> JSONResponse:
    """Begin a rollout and pin it to what is served now. Beginning it twice is beginning it once."""
    call = call_context(request, caller)
    rollout_id = new.rollout_id or new_event_id()
    key = call.key(rollout_id)
    versions = {name: target.version for name, target in services.routing.pin(key).items()}
    answer: dict[str, Any] = {"rollout_id": rollout_id, "checkpoints": versions}
    if services.routing.knows_begun(key):
        return JSONResponse(answer, status_code=200)
    services.routing.begin(key, new.group)
    said = {
        "agent": new.agent,
        "task": new.task,
        "split": new.split,
        "group": new.group,
        "checkpoints": versions,
    }
    events = [
        RolloutEvent(
            tenant=caller.tenant,
            rollout_id=rollout_id,
            trace_id=call.trace_id,
            payload=Rollout(state=state, **said),
        )
        for state in (RolloutState.CREATED, RolloutState.STARTED)
    ]
    await services.record_durably(ROLLOUTS, *events)
    return JSONResponse(answer, status_code=201)


@router.post("/{rollout_id:path}/end", status_code=202)
async def end(
    rollout_id: Name, ending: Ending, request: Request, services: Shared, caller: Agent
) -> JSONResponse:
    """End a rollout; its trajectory is joined from what has been recorded. What comes later is
    another episode.
    """
    call = call_context(request, caller)
    key = call.key(rollout_id)
    payload = Rollout(
        state=RolloutState(ending.state),
        output=ending.output,
        error=ending.error,
        turns=ending.turns,
        recorded=services.routing.recorded(key),
    )
    event = RolloutEvent(
        tenant=caller.tenant, rollout_id=rollout_id, trace_id=call.trace_id, payload=payload
    )
    await services.record_durably(ROLLOUTS, event)
    services.routing.release(key)
    services.conversations.forget(caller.tenant, rollout_id)
    return JSONResponse({"event_id": event.event_id}, status_code=202)
