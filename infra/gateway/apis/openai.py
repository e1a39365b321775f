"""OpenAI's API under logical model names: at `/v1`, and below a rollout's own path."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from infra.gateway.calls.exchange import serve
from infra.gateway.calls.formats import APIS, CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, Api
from infra.gateway.http.access import Agent, Caller
from infra.gateway.http.bodies import BoundedRoute, read_body
from infra.gateway.http.context import call_context
from infra.gateway.http.documents import document_of
from infra.gateway.http.problems import ProblemError
from infra.gateway.state.services import Shared
from schemas.routes import STAND_IN

router = APIRouter(route_class=BoundedRoute)
_BY_PATH = {api.path: api for api in APIS}


def _body_of(api: Api) -> dict[str, Any]:
    """Return what OpenAPI says of an API's request."""
    content = {"application/json": {"schema": api.request.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


@router.get("/v1/models")
async def models(services: Shared, _: Agent) -> JSONResponse:
    """List the logical models. A tenant's own model is called by the name that all share."""
    routing = services.routing
    found = [route.name for route in routing.routes.values() if route.kind in ("model", "choice")]
    names = sorted(name for name in found if not routing.is_own(name))
    if routing.stands_in:
        names = sorted([*names, STAND_IN])
    return JSONResponse({"object": "list", "data": [_model(name) for name in names]})


@router.get("/v1/models/{name:path}")
async def model(name: str, services: Shared, _: Agent) -> JSONResponse:
    """Return one logical model."""
    route = services.routing.routes.get(name)
    if route is None or route.kind not in ("model", "choice") or services.routing.is_own(name):
        raise ProblemError(
            404, "Unknown model", f"there is no model {name[:200]!r}; see /v1/models"
        )
    return JSONResponse(_model(name))


@router.post("/v1/chat/completions", openapi_extra=_body_of(CHAT))
async def chat_completions(request: Request, services: Shared, caller: Agent) -> Response:
    """Answer a chat. If the caller names no rollout, the conversation is one; a header names it."""
    return await _serve(request, services, caller, CHAT)


@router.post("/v1/completions", openapi_extra=_body_of(COMPLETIONS))
async def completions(request: Request, services: Shared, caller: Agent) -> Response:
    """Complete a text."""
    return await _serve(request, services, caller, COMPLETIONS)


@router.post("/v1/responses", openapi_extra=_body_of(RESPONSES))
async def responses(request: Request, services: Shared, caller: Agent) -> Response:
    """Answer in the form of the Responses API."""
    return await _serve(request, services, caller, RESPONSES)


@router.post("/v1/embeddings", openapi_extra=_body_of(EMBEDDINGS))
async def embeddings(request: Request, services: Shared, caller: Agent) -> Response:
    """Embed texts."""
    return await _serve(request, services, caller, EMBEDDINGS)


HANDLERS = {
    "/v1/chat/completions": chat_completions,
    "/v1/completions": completions,
    "/v1/responses": responses,
    "/v1/embeddings": embeddings,
}
"""Model calls by path, for `infra.gateway.apis.direct`."""


@router.post("/rollout/{rollout_id:path}/v1/{path:path}")
async def of_rollout(
    rollout_id: str, path: str, request: Request, services: Shared, caller: Agent
) -> Response:
    """Answer any of these APIs for one rollout. The path names it, for agents that can set only a
    base URL.
    """
    api = _BY_PATH.get(f"/{path}")
    if api is None:
        raise ProblemError(
            404, "Unknown path", f"there is no /v1/{path[:200]}; there are: {', '.join(_BY_PATH)}"
        )
    return await _serve(request, services, caller, api, rollout_id)


@router.get("/rollout/{rollout_id:path}/v1/models")
async def models_of_rollout(rollout_id: str, services: Shared, caller: Agent) -> JSONResponse:  # noqa: ARG001
    """List the logical models, as a client whose base URL names a rollout asks for them."""
    return await models(services, caller)


async def _serve(
    request: Request, services: Shared, caller: Caller, api: Api, rollout_id: str | None = None
) -> Response:
    call = call_context(request, caller, rollout_id)
    request.state.trace_id = call.trace_id
    document = document_of(await read_body(request), services.readers)
    return await serve(services, api, request, call, document)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "everloop"}
