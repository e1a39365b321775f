"""Agent Lightning's 1.0 server API on the log: its client, controller and trainer run against it
unchanged.

What it is asked to keep is written to the `lightning` topic before it is answered; what it means (a
rollout began, a model was called, a reward was given) is told on the topics every learner reads.
"""

from hashlib import sha256
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from infra.gateway.apis.lightning_changes import state_event, tell_reward, tell_state, write_change
from infra.gateway.calls.rollouts import drawn_split
from infra.gateway.http.access import Agent, Caller
from infra.gateway.http.bodies import BoundedRoute
from infra.gateway.state.lightning import Store
from infra.gateway.state.lightning_models import (
    AttemptEvent,
    LightningRollout,
    LightningRolloutState,
    NewLightningRollout,
    RolloutPatch,
    RunConfig,
)
from infra.gateway.state.services import Services, Shared
from infra.gateway.state.triplets import REWARD, triplets, without_experts
from schemas.envelope import rollout_key
from schemas.identifiers import new_trace_id
from schemas.lightning import Appended, Created, Deleted, Patched
from schemas.rollouts import Rollout, RolloutState, Split, Task
from schemas.topics import ROLLOUTS

router = APIRouter(tags=["agent lightning"], route_class=BoundedRoute)


class RolloutDetail(BaseModel):
    """A rollout with its attempts."""

    rollout: LightningRollout
    attempts: list[str]


class TerminalItem(BaseModel):
    """A rollout that has ended, without its input."""

    rollout_id: str
    state: LightningRolloutState
    data_id: str
    is_train: bool


class TerminalPage(BaseModel):
    """A page of ended rollouts. `next_after` asks for those that ended since."""

    items: list[TerminalItem]
    next_after: int
    total_terminal: int


class NewEvent(BaseModel):
    """An event to append."""

    event_type: str
    data: dict[str, Any] = Field(default_factory=dict)


@router.post("/api/rollouts", status_code=201)
async def enqueue(
    new: list[NewLightningRollout], services: Shared, caller: Agent
) -> list[LightningRollout]:
    """Enqueue rollouts. A rollout with a known id is returned as it is."""
    store = services.lightning.store(caller.tenant)
    ids = [rollout.rollout_id or new_trace_id() for rollout in new]
    async with store.changing:
        for rollout_id, rollout in zip(ids, new, strict=True):
            if rollout_id not in store.rollouts:
                await _create(services, caller, store, rollout_id, rollout)
        return [store.rollouts[rollout_id] for rollout_id in ids]


async def _create(
    services: Services, caller: Caller, store: Store, rollout_id: str, rollout: NewLightningRollout
) -> None:
    created = Created(
        input=rollout.input,
        is_train=rollout.is_train,
        config=(rollout.config or RunConfig()).model_dump(mode="json"),
        metadata=rollout.metadata.model_dump(mode="json") if rollout.metadata else {},
    )
    content = orjson.dumps(rollout.input, option=orjson.OPT_SORT_KEYS)
    task = Task(
        id=f"input-{sha256(content).hexdigest()[:16]}", input=rollout.input
    )  # one input is one task
    key = rollout_key(caller.tenant, rollout_id)
    # Pinned now, when it is enqueued: all its calls then see one version of each name.
    versions = {name: target.version for name, target in services.routing.pin(key).items()}
    split_chosen = "is_train" in rollout.model_fields_set
    split: Split = "train" if rollout.is_train else "validation"
    if not split_chosen:
        split = drawn_split(services, key)
    services.routing.begin(key, "default", split, split_chosen)
    began = Rollout(
        state=RolloutState.CREATED,
        agent="agentlightning",
        task=task,
        split=split,
        split_chosen=split_chosen,
        checkpoints=versions,
    )
    await services.record_durably(ROLLOUTS, state_event(caller, rollout_id, began))
    await write_change(services, caller, store, rollout_id, created)


@router.get("/api/rollouts")
async def list_rollouts(
    state_in: Annotated[list[LightningRolloutState], Query()],
    services: Shared,
    caller: Agent,
    limit: Annotated[int, Query(ge=0, le=100_000)] = 500,
) -> list[LightningRollout]:
    """List rollouts by state, the oldest first."""
    store = services.lightning.store(caller.tenant)
    return [rollout for rollout in store.rollouts.values() if rollout.status.state in state_in][
        :limit
    ]


@router.get("/api/rollouts/terminal")
async def list_terminal(
    services: Shared, caller: Agent, after: int = 0, limit: int = 1000
) -> TerminalPage:
    """Page through ended rollouts in the order they ended."""
    store = services.lightning.store(caller.tenant)
    begin = max(after, 0)
    ids = store.terminal[begin : begin + min(max(limit, 1), 100_000)]
    items = [
        TerminalItem(
            rollout_id=rollout_id,
            state=rollout.status.state,
            data_id=_data_id(rollout.input),
            is_train=rollout.is_train,
        )
        for rollout_id in ids
        if (rollout := store.rollouts.get(rollout_id)) is not None
    ]
    return TerminalPage(
        items=items, next_after=begin + len(ids), total_terminal=len(store.terminal)
    )


@router.get("/api/rollouts/{rollout_id}")
async def show_rollout(rollout_id: str, services: Shared, caller: Agent) -> RolloutDetail:
    """Return a rollout with its attempts."""
    store = services.lightning.store(caller.tenant)
    return RolloutDetail(rollout=store.rollout(rollout_id), attempts=store.attempts_of(rollout_id))


@router.patch("/api/rollouts/{rollout_id}")
async def patch_rollout(
    rollout_id: str, patch: RolloutPatch, services: Shared, caller: Agent
) -> LightningRollout:
    """Change a rollout's status. A change that its state does not allow is a 409."""
    store = services.lightning.store(caller.tenant)
    updates = (
        patch.status.model_dump(mode="json", exclude_unset=True) if patch.status is not None else {}
    )
    if patch.status is None or not updates:
        return store.rollout(rollout_id)
    async with store.changing:
        store.check(rollout_id, patch.status)
        if patch.status.state is not None:
            await tell_state(
                services, caller, rollout_id, patch.status.state, patch.status.error_message
            )
        await write_change(services, caller, store, rollout_id, Patched(updates=updates))
        return store.rollout(rollout_id)


@router.delete("/api/rollouts/{rollout_id}", status_code=204)
async def delete_rollout(rollout_id: str, services: Shared, caller: Agent) -> None:
    """Forget a rollout and its events. To forget one that is not there is no error."""
    store = services.lightning.store(caller.tenant)
    async with store.changing:
        if rollout_id in store.rollouts:
            await write_change(services, caller, store, rollout_id, Deleted())


@router.post("/api/rollouts/{rollout_id}/attempt/{attempt_id}/events")
async def append_event(
    rollout_id: str, attempt_id: str, new: NewEvent, services: Shared, caller: Agent
) -> AttemptEvent:
    """Append an event to an attempt. A reward counts for the rollout as well."""
    store = services.lightning.store(caller.tenant)
    change = Appended(attempt_id=attempt_id, event_type=new.event_type, data=new.data)
    async with store.changing:
        store.rollout(rollout_id)
        await write_change(services, caller, store, rollout_id, change)
        noted = store.attempts[rollout_id][attempt_id][-1]
    if new.event_type == REWARD:
        await tell_reward(services, caller, rollout_id, new.data)
    return noted


@router.get("/api/rollouts/{rollout_id}/events")
async def list_events(
    rollout_id: str,
    services: Shared,
    caller: Agent,
    event_type: str | None = None,
    format: str | None = None,  # noqa: A002 - its name in the API
    include_routed_experts: bool = True,
) -> list[AttemptEvent]:
    """Return the events of a rollout's last attempt. `format=triplet` returns only what a trainer
    needs.
    """
    found = services.lightning.store(caller.tenant).events(rollout_id, event_type)
    if format == "triplet":
        found = triplets(found)
    return found if include_routed_experts else [without_experts(event) for event in found]


def _data_id(given: Any) -> str:
    found = (given.get("data_id") or given.get("instance_id")) if isinstance(given, dict) else None
    return str(found or "")
