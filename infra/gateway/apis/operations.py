"""What operators ask the gateway: its health, its routes, and changes of routes."""

import asyncio
from collections.abc import Callable
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.control.audit import ControlError
from infra.control.routes import (
    canary,
    drain,
    promote,
    release,
    roll_back,
    set_route,
)
from infra.gateway.http.access import Admin, Agent, Caller
from infra.gateway.http.bodies import BoundedRoute
from infra.gateway.http.context import name_of
from infra.gateway.http.egress import EndpointRefusedError, check_address
from infra.gateway.http.problems import ProblemError
from infra.gateway.routes.targets import LoadedRoute, Target
from infra.gateway.state.services import Services, Shared
from schemas.envelope import Name
from schemas.routes import Choice, Route, RouteTarget
from schemas.serialization import readable
from streams.storage.log import Log

router = APIRouter(route_class=BoundedRoute)


class ChangeRequest(BaseModel):
    """A change by hand, with its reason for the audit trail."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(default="", max_length=4096)


class VersionRequest(ChangeRequest):
    """A change of one version."""

    version: Name


class CanaryRequest(VersionRequest):
    """A trial of a version with a share of new rollouts."""

    share: float = Field(default=0.05, gt=0, lt=1)


class WantedRoute(ChangeRequest):
    """A whole route; see `schemas.routes.Route`."""

    kind: Literal["model", "policy", "choice"]
    targets: list[RouteTarget] = Field(min_length=1, max_length=100)
    choice: Choice | None = None
    fallbacks: list[RouteTarget] = Field(default=[], max_length=10)
    shadows: list[RouteTarget] = Field(default=[], max_length=10)


@router.get("/healthz")
async def health(services: Shared) -> JSONResponse:
    """Say whether events reach the log. `spooling` is no failure: the gateway serves on."""
    status = services.publisher.status
    state = (
        "losing events" if status.lost else "spooling" if status.spooled or status.error else "ok"
    )
    body: dict[str, Any] = {
        "status": state,
        "events": {
            "accepted": dict(status.accepted),
            "lost": dict(status.lost),
            "spooled": status.spooled,
            "error": status.error,
        },
        "requests": dict(services.counts.requests),
        "switches": services.routing.switches,
        "stand_in": services.routing.stands_in,
    }
    return JSONResponse(body, status_code=503 if status.lost else 200)


@router.get("/livez")
async def live() -> dict[str, str]:
    """Say that the process answers. It looks at nothing that a restart would not mend."""
    return {"status": "ok"}


@router.get("/readyz")
async def ready(services: Shared) -> JSONResponse:
    """Say whether there is anything to serve."""
    names = sorted(services.routing.routes)
    serves = bool(names) or services.routing.stands_in
    return JSONResponse({"ready": serves, "names": names}, status_code=200 if serves else 503)


@router.get("/everloop/v1/routes")
async def routes(services: Shared, _: Agent) -> JSONResponse:
    """List the routes, with the open rollouts and the calls under way of each version."""
    return JSONResponse(
        {
            "routes": [
                _description(services, route)
                for _, route in sorted(services.routing.routes.items())
            ]
        }
    )


@router.put("/everloop/v1/routes/{name}")
async def put_route(name: str, wanted: WantedRoute, services: Shared, caller: Admin) -> Route:
    """Serve exactly this route, and hold it until it is released."""
    for target in (*wanted.targets, *wanted.fallbacks, *wanted.shadows):
        _check(name, wanted.kind, target)
    given = wanted.model_dump(exclude={"reason"})
    try:
        route = Route.model_validate({"name": name_of("name", name), **given})
    except ValidationError as error:
        raise ProblemError(400, "Invalid route", readable(error)) from error
    return await _operate(
        services, lambda log: set_route(log, _actor(caller), route, wanted.reason)
    )


@router.post("/everloop/v1/routes/{name}/promote")
async def promote_version(
    name: str, asked: VersionRequest, services: Shared, caller: Admin
) -> Route:
    """Serve a checkpoint to all new rollouts, whatever the gate says, and hold it there."""
    return await _operate(
        services, lambda log: promote(log, _actor(caller), name, asked.version, asked.reason)
    )


@router.post("/everloop/v1/routes/{name}/canary")
async def canary_version(name: str, asked: CanaryRequest, services: Shared, caller: Admin) -> Route:
    """Serve a checkpoint to a share of new rollouts."""
    return await _operate(
        services,
        lambda log: canary(log, _actor(caller), name, asked.version, asked.share, asked.reason),
    )


@router.post("/everloop/v1/routes/{name}/drain")
async def drain_version(name: str, asked: VersionRequest, services: Shared, caller: Admin) -> Route:
    """Give a version no new rollouts. Rollouts that are pinned to it go on to their end."""
    return await _operate(
        services, lambda log: drain(log, _actor(caller), name, asked.version, asked.reason)
    )


@router.post("/everloop/v1/routes/{name}/rollback")
async def roll_back_route(
    name: str, asked: ChangeRequest, services: Shared, caller: Admin
) -> Route:
    """Serve the previous entry of the route's history, and hold it there."""
    return await _operate(services, lambda log: roll_back(log, _actor(caller), name, asked.reason))


@router.post("/everloop/v1/routes/{name}/release")
async def release_route(name: str, asked: ChangeRequest, services: Shared, caller: Admin) -> Route:
    """Let the gate decide again."""
    return await _operate(services, lambda log: release(log, _actor(caller), name, asked.reason))


async def _operate(services: Services, work: Callable[[Log], Route]) -> Route:
    """Make an operator's change, in a thread, because the log may wait for the disk.

    The gateway itself learns of the change from the log, like every other process.
    """

    def change() -> Route:
        # `power`: what a person decided must survive a power cut.
        with services.open_log("power") as log:
            return work(log)

    try:
        return await asyncio.to_thread(change)
    except ControlError as error:
        raise ProblemError(409, "Cannot be done", str(error)) from error


def _check(name: str, kind: str, target: RouteTarget) -> None:
    if kind == "model" and target.endpoint is None:
        raise ProblemError(400, "Invalid route", f"model {name} {target.version} has no endpoint")
    try:
        if target.endpoint is not None:
            check_address(target.endpoint.base_url)
    except EndpointRefusedError as error:
        raise ProblemError(400, "Endpoint refused", str(error)) from error


def _actor(caller: Caller) -> str:
    return caller.key_id or "anonymous"


def _description(services: Services, route: LoadedRoute) -> dict[str, Any]:
    pinned = services.routing.pinned(route.name)
    breakers = services.upstreams.breakers

    def describe(target: Target) -> dict[str, Any]:
        breaker = breakers.get(target.endpoint.base_url) if target.endpoint else None
        return {
            "version": target.version,
            "weight": target.weight,
            "endpoint": target.endpoint.model_dump() if target.endpoint else None,
            "pinned_rollouts": pinned[target.version],
            "inflight": breaker.inflight if breaker else 0,
            "up": breaker.open_until == 0.0 if breaker else True,
        }

    return {
        "name": route.name,
        "kind": route.kind,
        "held": route.held,
        "choice": route.choice.model_dump() if route.choice else None,
        "targets": [describe(target) for target in route.targets],
        "control": describe(route.control) if route.control else None,
        "fallbacks": [describe(target) for target in route.fallbacks],
        "shadows": [describe(target) for target in route.shadows],
    }
