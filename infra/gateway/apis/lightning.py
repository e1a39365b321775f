"""Agent Lightning's 1.0 server API on the log: its client, controller and trainer run against it
unchanged.

What it is asked to keep is written to the `lightning` topic before it is answered; what it means (a
rollout began, a model was called, a reward was given) is told on the topics every learner reads.
"""

from hashlib import sha256
from typing import Annotated, Any, Literal

import orjson
import structlog
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from infra.gateway.calls.exchange import serve
from infra.gateway.calls.formats import CHAT, COMPLETIONS
from infra.gateway.calls.model_call import ModelCall
from infra.gateway.calls.rollouts import drawn_split, fault_at_end
from infra.gateway.http.access import Admin, Agent, Caller
from infra.gateway.http.bodies import BoundedRoute, parse_object, read_body
from infra.gateway.http.context import call_context
from infra.gateway.http.documents import Here
from infra.gateway.http.egress import EndpointRefusedError, check_address
from infra.gateway.http.problems import ProblemError
from infra.gateway.http.threads import run_aside
from infra.gateway.routes.table import LoadedRoute, Target
from infra.gateway.state.lightning import (
    MODEL_REQUEST,
    REWARD,
    AttemptEvent,
    LightningRollout,
    LightningRolloutState,
    ModelServer,
    NewLightningRollout,
    PauseState,
    RolloutPatch,
    RunConfig,
    Store,
    triplets,
    without_experts,
)
from infra.gateway.state.services import Services, Shared
from schemas.clock import from_milliseconds
from schemas.endpoints import Endpoint
from schemas.envelope import rollout_key
from schemas.identifiers import derived_event_id, new_trace_id
from schemas.lightning import (
    Appended,
    Cleared,
    Created,
    Deleted,
    Lightning,
    LightningEvent,
    Patched,
    Paused,
    Registered,
)
from schemas.rewards import Reward, RewardEvent, RewardSource
from schemas.rollouts import Rollout, RolloutEvent, RolloutState, Split, Task
from schemas.topics import LIGHTNING, REWARDS, ROLLOUTS

router = APIRouter(tags=["agent lightning"], route_class=BoundedRoute)
logger = structlog.get_logger(__name__)

Change = Created | Patched | Appended | Deleted | Registered | Cleared | Paused
_STATES = {
    LightningRolloutState.RUNNING: RolloutState.STARTED,
    LightningRolloutState.SUCCEEDED: RolloutState.SUCCEEDED,
    LightningRolloutState.FAILED: RolloutState.FAILED,
}


class RolloutDetail(BaseModel):
    """A rollout with its attempts."""

    rollout: LightningRollout
    attempts: list[str]


class TerminalItem(BaseModel):
    """A rollout that has ended, without what it was asked."""

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


class Pause(BaseModel):
    """How long callers are told to wait, and why."""

    retry_after_seconds: int = Field(default=5, ge=0, le=86_400)
    reason: str | None = None


@router.post("/api/rollouts", status_code=201)
async def enqueue(
    new: list[NewLightningRollout], services: Shared, caller: Agent
) -> list[LightningRollout]:
    """Enqueue rollouts; one whose id is known is returned as it is."""
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
    await services.record_durably(ROLLOUTS, _state_event(caller, rollout_id, began))
    await _change(services, caller, store, rollout_id, created)


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
    """Change a rollout's status; what its state cannot become is a 409."""
    store = services.lightning.store(caller.tenant)
    updates = (
        patch.status.model_dump(mode="json", exclude_unset=True) if patch.status is not None else {}
    )
    if patch.status is None or not updates:
        return store.rollout(rollout_id)
    async with store.changing:
        store.check(rollout_id, patch.status)
        if patch.status.state is not None:
            await _tell_state(
                services, caller, rollout_id, patch.status.state, patch.status.error_message
            )
        await _change(services, caller, store, rollout_id, Patched(updates=updates))
        return store.rollout(rollout_id)


@router.delete("/api/rollouts/{rollout_id}", status_code=204)
async def delete_rollout(rollout_id: str, services: Shared, caller: Agent) -> None:
    """Forget a rollout and its events; one that is not there is forgotten already."""
    store = services.lightning.store(caller.tenant)
    async with store.changing:
        if rollout_id in store.rollouts:
            await _change(services, caller, store, rollout_id, Deleted())


@router.post("/api/rollouts/{rollout_id}/attempt/{attempt_id}/events")
async def append_event(
    rollout_id: str, attempt_id: str, new: NewEvent, services: Shared, caller: Agent
) -> AttemptEvent:
    """Append an event to an attempt. A reward counts for the rollout as well."""
    store = services.lightning.store(caller.tenant)
    change = Appended(attempt_id=attempt_id, event_type=new.event_type, data=new.data)
    async with store.changing:
        store.rollout(rollout_id)
        await _change(services, caller, store, rollout_id, change)
        noted = store.attempts[rollout_id][attempt_id][-1]
    if new.event_type == REWARD:
        await _tell_reward(services, caller, rollout_id, new.data)
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
    """Return the events of a rollout's last attempt; `format=triplet` leaves what a trainer
    needs.
    """
    found = services.lightning.store(caller.tenant).events(rollout_id, event_type)
    if format == "triplet":
        found = triplets(found)
    return found if include_routed_experts else [without_experts(event) for event in found]


@router.post("/api/models", status_code=201)
async def register_models(
    servers: list[ModelServer], services: Shared, caller: Admin
) -> list[ModelServer]:
    """Register model servers; the same model and endpoint twice is once."""
    store = services.lightning.store(caller.tenant)
    for server in servers:
        try:
            check_address(server.endpoint)
        except EndpointRefusedError as error:
            raise ProblemError(400, "Endpoint refused", str(error)) from error
    for server in servers:
        await _change(services, caller, store, None, Registered(**server.model_dump()))
    return servers


@router.delete("/api/models")
async def clear_models(services: Shared, caller: Admin) -> dict[str, str]:
    """Forget all model servers."""
    await _change(services, caller, services.lightning.store(caller.tenant), None, Cleared())
    return {"status": "ok"}


@router.post("/proxy/pause")
async def pause(asked: Pause, services: Shared, caller: Admin) -> PauseState:
    """Refuse new calls through the proxy; those under way end as they would."""
    store = services.lightning.store(caller.tenant)
    await _change(services, caller, store, None, Paused(paused=True, **asked.model_dump()))
    return store.pause


@router.post("/proxy/resume")
async def resume(services: Shared, caller: Admin) -> PauseState:
    """Take calls again."""
    store = services.lightning.store(caller.tenant)
    await _change(
        services,
        caller,
        store,
        None,
        Paused(paused=False, retry_after_seconds=store.pause.retry_after_seconds),
    )
    return store.pause


@router.get("/proxy/state")
async def pause_state(services: Shared, caller: Admin) -> PauseState:
    """Say whether calls are refused, and how many are under way."""
    return services.lightning.store(caller.tenant).pause


@router.post("/proxy/rollout/{rollout_id}/attempt/{attempt_id}/mode/{mode}/openai/v1/{path:path}")
async def proxy_call(
    rollout_id: str,
    attempt_id: str,
    mode: Literal["train", "val"],
    path: Literal["chat/completions", "completions"],
    request: Request,
    services: Shared,
    caller: Agent,
) -> Response:
    """Answer an agent's model call for an attempt of a rollout, streamed too, with token ids for
    the trainer.
    """
    store = services.lightning.store(caller.tenant)
    store.rollout(rollout_id)
    if store.pause.paused:
        headers = {"retry-after": str(store.pause.retry_after_seconds), "x-agl-paused": "true"}
        said = {"error": "gateway paused", "reason": store.pause.reason}
        services.routing.note_fault(rollout_key(caller.tenant, rollout_id), "limit")
        return JSONResponse(said, 429, headers=headers)
    target, route = _server_for(services, store, caller, rollout_id)
    content = await read_body(request)
    # The trainer's store keeps requests and answers in memory, so they are read here in any case.
    body = await run_aside(len(content), parse_object, content)
    body |= {
        "model": route.name,
        "temperature": _temperature(services, mode),
        "return_token_ids": True,
    }
    if mode == "train":
        body["logprobs"] = True if path == "chat/completions" else 1
    api = CHAT if path == "chat/completions" else COMPLETIONS
    call = call_context(request, caller, rollout_id)
    observer = _Attempt(services, store, caller, rollout_id, attempt_id)
    document = Here(body, len(content))
    return await serve(services, api, request, call, document, observer, (target, route))


class _Attempt:
    """Notes model calls with the attempt they belong to."""

    def __init__(
        self, services: Services, store: Store, caller: Caller, rollout_id: str, attempt_id: str
    ) -> None:
        self._services = services
        self._store = store
        self._caller = caller
        self._rollout_id = rollout_id
        self._attempt_id = attempt_id

    def on_begin(self, model_call: ModelCall) -> None:  # noqa: ARG002
        self._store.pause.inflight += 1

    def on_end(self, model_call: ModelCall, status: int | None, error: str | None) -> None:
        self._store.pause.inflight -= 1
        data = _request_data(model_call, status, error)
        change = Appended(attempt_id=self._attempt_id, event_type=MODEL_REQUEST, data=data)
        event = _event(self._caller, self._rollout_id, change)
        self._store.take(event)
        self._services.hand_over(LIGHTNING, self._caller.tenant, event)


def _server_for(
    services: Services, store: Store, caller: Caller, rollout_id: str
) -> tuple[Target, LoadedRoute]:
    """Return what serves a rollout: a registered server, always the same one, else the configured
    logical model.
    """
    name = services.settings.lightning_model
    servers = store.servers.get(name, {}) if name else next(iter(store.servers.values()), {})
    if servers:
        pool = [servers[endpoint] for endpoint in sorted(servers)]
        server = pool[int.from_bytes(sha256(rollout_id.encode()).digest()[:8]) % len(pool)]
        endpoint = Endpoint(base_url=server.endpoint, model=server.model)
        target = Target(f"{server.model}@{server.version}", 1.0, endpoint=endpoint)
        return target, LoadedRoute(server.model, "model", (target,))
    if name is None:
        raise ProblemError(
            503, "No model server", "no model server is registered, nor gateway.lightning_model set"
        )
    return services.routing.resolve(name, "model", rollout_key(caller.tenant, rollout_id))


def _temperature(services: Services, mode: str) -> float:
    gateway = services.settings
    return gateway.train_temperature if mode == "train" else gateway.val_temperature


def _request_data(model_call: ModelCall, status: int | None, error: str | None) -> dict[str, Any]:
    """Return a call as the trainer reads it (`agentlightning.schemas.ModelRequestData`)."""
    response = model_call.answer.document
    endpoint, version = model_call.target.endpoint, model_call.target.version
    number = version.rpartition("@")[2]
    server_version: int | str = int(number) if number.isdigit() else version
    choices = [choice for choice in response.get("choices", ()) if isinstance(choice, dict)]
    experts = next(
        (c.pop("routed_experts") for c in choices if c.get("routed_experts") is not None), None
    )
    return {
        "model": endpoint.model if endpoint else "",
        "model_version": server_version,
        "request": model_call.body,
        "response": response or {"error": error},
        "server": {
            "model": endpoint.model if endpoint else "",
            "endpoint": endpoint.base_url if endpoint else "",
            "version": server_version,
        },
        "latency_ms": model_call.duration_s * 1000,
        "http_status": status,
        "status": "ok" if error is None else "error",
        "retry_count": max(0, model_call.attempts - 1),
        "routed_experts": experts,
        "usage": response.get("usage"),
        "finish_reason": next(iter(model_call.answer.finish_reasons), None),
    }


async def _change(
    services: Services, caller: Caller, store: Store, rollout_id: str | None, change: Change
) -> None:
    """Write a change, then show it."""
    event = _event(caller, rollout_id, change)
    await services.write(LIGHTNING, caller.tenant, event)
    store.take(event)


def _event(caller: Caller, rollout_id: str | None, change: Change) -> LightningEvent:
    return LightningEvent(
        tenant=caller.tenant, rollout_id=rollout_id, payload=Lightning(change=change)
    )


def _state_event(caller: Caller, rollout_id: str, rollout: Rollout) -> RolloutEvent:
    """Return a change of state for the learners.

    It is written before the change of the API's own state, under an id that the same change always
    has: what is asked again after a crash between the two is told once.
    """
    key = rollout_key(caller.tenant, rollout_id)
    event_id = derived_event_id(from_milliseconds(0), "lightning", key, rollout.state)
    return RolloutEvent(
        event_id=event_id, tenant=caller.tenant, rollout_id=rollout_id, payload=rollout
    )


async def _tell_state(
    services: Services,
    caller: Caller,
    rollout_id: str,
    state: LightningRolloutState,
    error: str | None,
) -> None:
    if state is LightningRolloutState.QUEUING:
        return
    key = rollout_key(caller.tenant, rollout_id)
    change = Rollout(state=_STATES[state], error=error)
    if state is LightningRolloutState.FAILED:
        change = change.model_copy(update={"fault": fault_at_end(services, key)})
    if state is not LightningRolloutState.RUNNING:
        change = change.model_copy(update={"recorded": services.routing.recorded(key)})
        services.routing.release(key)
    event = _state_event(caller, rollout_id, change)
    await services.record_durably(ROLLOUTS, event)


async def _tell_reward(
    services: Services, caller: Caller, rollout_id: str, data: dict[str, Any]
) -> None:
    """Give a reward to the rollout, in [0, 1]; what cannot be brought there is kept with the events
    only.
    """
    worst, best = services.settings.lightning_rewards
    value = data.get("value")
    scaled = (value - worst) / (best - worst) if isinstance(value, int | float) else None
    if scaled is None or not 0 <= scaled <= 1:
        logger.warning(
            "reward out of gateway.lightning_rewards, not learned from",
            rollout=rollout_id,
            value=value,
        )
        return
    reward = Reward(value=scaled, source=RewardSource.ENVIRONMENT, grader="agentlightning")
    await services.record_durably(
        REWARDS, RewardEvent(tenant=caller.tenant, rollout_id=rollout_id, payload=reward)
    )


def _data_id(given: Any) -> str:
    found = (given.get("data_id") or given.get("instance_id")) if isinstance(given, dict) else None
    return str(found or "")
