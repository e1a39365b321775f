"""Agent Lightning's proxy: its model servers, and the calls that agents make through it."""

from hashlib import sha256
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from infra.gateway.apis.lightning_changes import change_event, write_change
from infra.gateway.calls.exchange import serve
from infra.gateway.calls.formats import CHAT, COMPLETIONS
from infra.gateway.calls.model_call import ModelCall
from infra.gateway.http.access import Admin, Agent, Caller
from infra.gateway.http.bodies import BoundedRoute, parse_object, read_body
from infra.gateway.http.context import call_context
from infra.gateway.http.documents import Here
from infra.gateway.http.egress import EndpointRefusedError, check_address
from infra.gateway.http.problems import ProblemError
from infra.gateway.http.threads import run_aside
from infra.gateway.routes.targets import LoadedRoute, Target
from infra.gateway.state.lightning import Store
from infra.gateway.state.lightning_models import ModelServer, PauseState
from infra.gateway.state.services import Services, Shared
from infra.gateway.state.triplets import MODEL_REQUEST
from schemas.endpoints import Endpoint
from schemas.envelope import rollout_key
from schemas.lightning import Appended, Cleared, Paused, Registered
from schemas.topics import LIGHTNING

router = APIRouter(tags=["agent lightning"], route_class=BoundedRoute)


class Pause(BaseModel):
    """How long callers are told to wait, and why."""

    retry_after_seconds: int = Field(default=5, ge=0, le=86_400)
    reason: str | None = None


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
        await write_change(services, caller, store, None, Registered(**server.model_dump()))
    return servers


@router.delete("/api/models")
async def clear_models(services: Shared, caller: Admin) -> dict[str, str]:
    """Forget all model servers."""
    await write_change(services, caller, services.lightning.store(caller.tenant), None, Cleared())
    return {"status": "ok"}


@router.post("/proxy/pause")
async def pause(asked: Pause, services: Shared, caller: Admin) -> PauseState:
    """Refuse new calls through the proxy; those under way end as they would."""
    store = services.lightning.store(caller.tenant)
    await write_change(services, caller, store, None, Paused(paused=True, **asked.model_dump()))
    return store.pause


@router.post("/proxy/resume")
async def resume(services: Shared, caller: Admin) -> PauseState:
    """Take calls again."""
    store = services.lightning.store(caller.tenant)
    await write_change(
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
        event = change_event(self._caller, self._rollout_id, change)
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
