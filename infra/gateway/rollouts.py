"""Rollouts: an agent says when it begins and how it ended."""

from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from infra.gateway.context import Call
from infra.gateway.services import Shared
from schemas.envelope import Name
from schemas.identifiers import new_event_id
from schemas.rollouts import Rollout, RolloutEvent, RolloutState, Split, Task
from schemas.topics import ROLLOUTS

router = APIRouter(prefix="/everloop/v1/rollouts")


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
async def create(new: NewRollout, services: Shared, call: Call) -> JSONResponse:
    """Begin a rollout and pin it to what is served now. Beginning it twice is beginning it once."""
    rollout_id = new.rollout_id or new_event_id()
    versions = {name: target.version for name, target in services.routing.pin(rollout_id).items()}
    answer: dict[str, Any] = {"rollout_id": rollout_id, "checkpoints": versions}
    if services.routing.knows_begun(rollout_id):
        return JSONResponse(answer, status_code=200)
    services.routing.begin(rollout_id)
    said = {
        "agent": new.agent,
        "task": new.task,
        "split": new.split,
        "group": new.group,
        "checkpoints": versions,
    }
    events = [
        RolloutEvent(rollout_id=rollout_id, trace_id=call.trace_id, payload=Rollout(state=state, **said))
        for state in (RolloutState.CREATED, RolloutState.STARTED)
    ]
    await services.record_durably(ROLLOUTS, *events)
    return JSONResponse(answer, status_code=201)


@router.post("/{rollout_id}/end", status_code=202)
async def end(rollout_id: Name, ending: Ending, services: Shared, call: Call) -> JSONResponse:
    """End a rollout; its trajectory is joined from what has been recorded."""
    payload = Rollout(
        state=RolloutState(ending.state),
        output=ending.output,
        error=ending.error,
        turns=ending.turns,
        recorded=services.routing.recorded(rollout_id),
    )
    event = RolloutEvent(rollout_id=rollout_id, trace_id=call.trace_id, payload=payload)
    await services.record_durably(ROLLOUTS, event)
    services.routing.release(rollout_id)
    return JSONResponse({"event_id": event.event_id}, status_code=202)
