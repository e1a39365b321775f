"""OpenAI chat completions, streamed or not, under logical model names."""

import os
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.gateway.context import CHECKPOINT_HEADER, ROLLOUT_HEADER, Call, CallContext
from infra.gateway.model_spans import ModelCall
from infra.gateway.problems import ProblemError
from infra.gateway.routing import Target
from infra.gateway.services import Services, Shared, read_object
from schemas.rollouts import Rollout, RolloutEvent, RolloutState
from schemas.routes import Endpoint
from schemas.serialization import readable
from schemas.topics import ROLLOUTS, SPANS

router = APIRouter()


class ChatRequest(BaseModel):
    """What the gateway itself must understand of a request; everything else is passed on as it came."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1)
    messages: list[dict[str, Any]] = Field(min_length=1)
    stream: bool | None = None


@router.get("/v1/models")
async def models(services: Shared) -> JSONResponse:
    """List the logical models."""
    names = sorted(route.name for route in services.routing.routes.values() if route.kind == "model")
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "everloop"} for name in names]
    return JSONResponse({"object": "list", "data": data})


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, services: Shared, call: Call) -> Response:
    """Answer from what serves the logical model; the span is recorded when the answer ends.

    A caller that names no rollout gets one for this call alone; its id is in the answer's headers, so that a reward
    can be given.
    """
    body = await read_object(request, services.settings.gateway.max_body_bytes)
    try:
        asked = ChatRequest.model_validate(body)
    except ValidationError as error:
        raise ProblemError(400, "Invalid request", readable(error)) from error
    target = services.routing.resolve(asked.model, "model", call.rollout_id)
    assert target.endpoint is not None  # noqa: S101 - routes of kind model have one
    _announce(services, call, asked.model, target)
    model_call = ModelCall(call, body, target)
    upstream = _upstream_request(services.http, target.endpoint, body)
    headers = {ROLLOUT_HEADER: call.rollout_id, CHECKPOINT_HEADER: target.version}
    try:
        answer = await services.http.send(upstream, stream=True)
        if asked.stream and answer.is_success:
            chunks = _relayed(services, model_call, answer)
            return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)
        content = await answer.aread()
    except httpx.HTTPError as error:
        status, reason = _failure(error)
        _finish(services, model_call, None, reason)
        raise ProblemError(status, "Model server failed", f"{target.endpoint.base_url}: {reason}") from error
    model_call.completion.read_body(content)
    _finish(
        services,
        model_call,
        answer.status_code,
        None if answer.is_success else f"status {answer.status_code}",
    )
    kind = answer.headers.get("content-type", "application/json")
    return Response(content, answer.status_code, headers=headers, media_type=kind)


def _upstream_request(http: httpx.AsyncClient, endpoint: Endpoint, body: dict[str, Any]) -> httpx.Request:
    headers = {"content-type": "application/json"}
    if endpoint.api_key_env:
        key = os.environ.get(endpoint.api_key_env)
        if not key:
            raise ProblemError(
                503, "Model not configured", f"the environment variable {endpoint.api_key_env} holds no key"
            )
        headers["authorization"] = f"Bearer {key}"
    content = orjson.dumps(body | {"model": endpoint.model})
    return http.build_request(
        "POST", f"{endpoint.base_url.rstrip('/')}/chat/completions", content=content, headers=headers
    )


async def _relayed(services: Services, model_call: ModelCall, answer: httpx.Response) -> AsyncIterator[bytes]:
    """Pass an event stream on as it comes; record it when it ends, breaks or the caller hangs up."""
    error: str | None = "cancelled"
    try:
        async for chunk in answer.aiter_raw():
            model_call.first_token()
            model_call.completion.read_chunk(chunk)
            yield chunk
        error = None if model_call.completion.ended else "the model server's stream broke off"
    except httpx.HTTPError as failure:
        error = _failure(failure)[1]
        detail = {"message": error, "type": "server_error", "code": "model_server_failed"}
        yield b"data: " + orjson.dumps({"error": detail}) + b"\n\n"
    finally:
        await answer.aclose()
        _finish(services, model_call, answer.status_code, error)


def _announce(services: Services, call: CallContext, model: str, target: Target) -> None:
    """Tell of a rollout whose agent did not: one this gateway has not seen begin."""
    if call.named and services.routing.knows_begun(call.rollout_id):
        return
    services.routing.begin(call.rollout_id)
    rollout = Rollout(state=RolloutState.STARTED, checkpoints={model: target.version})
    services.record(ROLLOUTS, RolloutEvent(rollout_id=call.rollout_id, trace_id=call.trace_id, payload=rollout))


def _finish(services: Services, model_call: ModelCall, status: int | None, error: str | None) -> None:
    """Record the span, and the end of a rollout that was this call alone."""
    call = model_call.call
    span = model_call.span(status, error)
    services.record(SPANS, span)
    failed = span.payload.status == "error"
    services.requests[_outcome(status, error, failed)] += 1
    if not call.named:
        state = RolloutState.FAILED if failed else RolloutState.SUCCEEDED
        recorded = services.routing.recorded(call.rollout_id)
        rollout = Rollout(state=state, error=span.payload.status_message or None, turns=1, recorded=recorded)
        services.record(ROLLOUTS, RolloutEvent(rollout_id=call.rollout_id, trace_id=call.trace_id, payload=rollout))
        services.routing.release(call.rollout_id)


def _outcome(status: int | None, error: str | None, failed: bool) -> str:
    if error == "cancelled":
        return "cancelled"
    if not failed:
        return "served"
    return "refused" if status is not None and 400 <= status < 500 else "failed"


def _failure(error: httpx.HTTPError) -> tuple[int, str]:
    """Return the status to answer with and the reason."""
    if isinstance(error, httpx.TimeoutException):
        return 504, f"no answer in time ({type(error).__name__})"
    return 502, f"no answer ({type(error).__name__}: {error})"
