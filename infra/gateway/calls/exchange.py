"""A model call from beginning to end: placed, sent, passed back, recorded."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import aiohttp
import orjson
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.background import BackgroundTask

from infra.gateway.calls.faults import fault_of_refusal
from infra.gateway.calls.finish import Finish, Observer
from infra.gateway.calls.formats import CHAT, Api
from infra.gateway.calls.model_call import ModelCall
from infra.gateway.calls.placement import Placement, place_call, record_placement
from infra.gateway.calls.requests import Asked, read_request
from infra.gateway.calls.shadows import send_shadows
from infra.gateway.calls.tool_calls import InvalidToolCallError
from infra.gateway.calls.watch import Watch
from infra.gateway.http.context import (
    CHECKPOINT_HEADER,
    ROLLOUT_HEADER,
    SPAN_HEADER,
    SPLIT_HEADER,
    CallContext,
)
from infra.gateway.http.documents import Document
from infra.gateway.http.problems import ProblemError
from infra.gateway.models.servers import Reply, UpstreamError
from infra.gateway.routes.targets import LoadedRoute, Target
from infra.gateway.state.services import Services

SENT_ON = ("accept", "openai-beta", "openai-organization", "openai-project", "x-request-id")
"""Headers of a request that a model server gets; above all not the caller's key."""

PASSED_BACK = ("retry-after", "x-request-id")
PASSED_BACK_PREFIXES = ("openai-", "x-ratelimit-")


PIECE_BYTES = 8 * 1024
"""So much of a stream is read in less than a millisecond."""


async def serve(
    services: Services,
    api: Api,
    request: Request,
    call: CallContext,
    document: Document,
    observer: Observer | None = None,
    resolved: tuple[Target, LoadedRoute] | None = None,
) -> Response:
    """Answer a request with what serves its logical model. Its span is recorded at the end.

    Args:
        observer: hears of the end before the answer is passed back. A stream is passed back first.
        resolved: what serves the request. None: the routes say it.

    Raises:
        ProblemError: the request does not fit this API; there is no such model; the key is over a
            limit; no model server answered; or the model called a tool against the caller's schema.
    """
    with _refusal_noted(services, call):
        # 1. Refuse a malformed request, or one over a limit, before anything is kept of it.
        asked = await _read_asked(services, api, call, document)

        # 2. Find its rollout and the version that serves it. From here to the first `try` of the
        # call nothing may wait: a cancelled wait would leave the conversation busy for ever.
        placement = await place_call(services, api, call, document, asked, resolved)

    # 3. Record the rollout, its versions and the choice first: the span refers to them.
    record_placement(services, call, placement)

    # 4. Tell the observer, and send copies to the shadows.
    model_call = _model_call(services, api, call, placement, asked)
    if observer is not None:
        observer.on_begin(model_call)
    if placement.route.shadows:
        send_shadows(services, placement.route, model_call)

    # 5. Ask, and pass the answer back. The span is recorded when the answer ends.
    return await _answer(services, request, placement, model_call, observer)


async def _read_asked(services: Services, api: Api, call: CallContext, document: Document) -> Asked:
    speaker = None if call.rollout_id else (call.caller.tenant, call.caller.key_id)
    asked = await document.apply(read_request, api, speaker)
    services.limits.check(call.caller.key)
    return asked


def _model_call(
    services: Services, api: Api, call: CallContext, placement: Placement, asked: Asked
) -> ModelCall:
    key = call.key(placement.rollout_id)
    group, (split, _) = services.routing.group(key), services.routing.split(key)
    return ModelCall(
        api,
        call,
        placement.rollout_id,
        group,
        placement.asked,
        placement.document,
        placement.target,
        split,
        asked.transcript,
    )


async def _answer(
    services: Services,
    request: Request,
    placement: Placement,
    model_call: ModelCall,
    observer: Observer | None,
) -> Response:
    """Ask, and once more if the model called a tool against its schema and settings allow it.

    Raises:
        ProblemError: no model server answered, or no tool call was allowed.
    """
    repairs = services.settings.tool_calls == "repair" and model_call.api is CHAT
    route = placement.route
    finish = Finish(services, model_call, placement, observer, repairs)
    try:
        return await _call(services, request, route, model_call, finish)
    except InvalidToolCallError as invalid:
        if not repairs:
            raise ProblemError(502, "Invalid tool call", str(invalid)) from invalid
        again = await model_call.repair_call()
    finish = Finish(services, again, placement, None)
    try:
        return await _call(services, request, route, again, finish)
    except InvalidToolCallError as invalid:
        raise ProblemError(
            502, "Invalid tool call", f"asked again, the model answered: {invalid}"
        ) from invalid


@contextmanager
def _refusal_noted(services: Services, call: CallContext) -> Iterator[None]:
    """Keep why a call was refused, for the rollout that the caller names."""
    try:
        yield
    except ProblemError as refused:
        if call.rollout_id is not None:
            key = call.key(call.rollout_id)
            services.routing.note_fault(key, fault_of_refusal(refused.status_code))
        raise


async def _call(
    services: Services,
    request: Request,
    route: LoadedRoute,
    model_call: ModelCall,
    finish: Finish,
) -> Response:
    """Send a call and return the answer.

    Raises:
        ProblemError: no model server answered.
        InvalidToolCallError: the model called a tool against the caller's schema, and the settings
            do not let that pass.
    """
    watch = Watch(request)
    try:
        sent = {name: value for name in SENT_ON if (value := request.headers.get(name)) is not None}
        headers = {**sent, "content-type": "application/json", "accept-encoding": "identity"}
        reply = await services.upstreams.ask(
            (model_call.target, *route.fallbacks),
            model_call.api.path,
            model_call.document,
            headers,
        )
    except UpstreamError as error:
        model_call.target, model_call.attempts = error.target, error.attempts
        finish(None, str(error))
        raise ProblemError(error.status, "Model server failed", str(error)) from error
    except ProblemError as error:
        finish(None, str(error.detail), fault_of_refusal(error.status_code))
        raise
    except asyncio.CancelledError:
        finish(None, "cancelled")
        watch.end()
        raise
    finally:
        watch.close()
    model_call.target, model_call.attempts = reply.target, reply.attempts
    return await _pass_back(model_call, reply, finish)


async def _pass_back(model_call: ModelCall, reply: Reply, finish: Finish) -> Response:
    """Return the answer: whole, or as a stream that is passed on as it comes."""
    upstream = reply.response
    headers = {
        ROLLOUT_HEADER: model_call.rollout_id,
        CHECKPOINT_HEADER: reply.target.version,
        SPAN_HEADER: model_call.call.span_id,
        SPLIT_HEADER: model_call.split,
    }
    for name, value in upstream.headers.items():
        passed = name.lower() in PASSED_BACK or name.lower().startswith(PASSED_BACK_PREFIXES)
        if passed and value.isascii():
            headers[name.lower()] = value
    kind = upstream.headers.get("content-type", "application/json")
    if not kind.isascii():
        kind = "application/octet-stream"
    if kind.startswith("text/event-stream") and upstream.ok:
        given_up = BackgroundTask(_record_hang_up, reply, finish)
        chunks = _relay(model_call, reply, finish)
        return StreamingResponse(chunks, headers=headers, media_type=kind, background=given_up)
    try:
        content = await upstream.read()
        ending = await model_call.read(content, finish.readers)
    except (aiohttp.ClientError, TimeoutError, OSError) as failure:
        reason = f"{upstream.url.origin()}: the answer broke off ({type(failure).__name__})"
        finish(upstream.status, reason)
        status = 504 if isinstance(failure, TimeoutError) else 502
        raise ProblemError(status, "Model server failed", reason, headers) from failure
    except ProblemError as problem:  # it could not be read
        finish(upstream.status, str(problem.detail))
        raise
    except asyncio.CancelledError:
        finish(upstream.status, "cancelled")
        raise
    finally:
        reply.close()
    error = None if upstream.ok else f"status {upstream.status}"
    if error is None and ending.invalid_calls and not finish.lets_invalid_through:
        reason = "; ".join(ending.invalid_calls.values())
        # The model's own doing, and so the agent's: it must not escape a reward by it.
        wrong = f"invalid tool call: {reason}"
        finish(upstream.status, wrong, "agent", ending, goes_on=finish.repairs)
        raise InvalidToolCallError(reason)
    if finish.awaited:
        finish(upstream.status, error, None, ending)
        return Response(content, upstream.status, headers=headers, media_type=kind)
    recorded = BackgroundTask(finish.later, upstream.status, error, ending)
    return Response(content, upstream.status, headers=headers, media_type=kind, background=recorded)


async def _relay(model_call: ModelCall, reply: Reply, finish: Finish) -> AsyncIterator[bytes]:
    """Pass an event stream on as it comes.

    It is recorded when it ends, when it breaks, or when the caller hangs up.
    """
    # If the caller hangs up, the generator is closed at its `yield`, and this stays the error.
    error: str | None = "cancelled"
    try:
        async for chunk in reply.response.content.iter_any():
            model_call.mark_first_token()
            model_call.size += len(chunk)
            # A busy server's events come many at once. Others have a turn between the pieces.
            for begin in range(0, len(chunk), PIECE_BYTES):
                if begin > 0:
                    await asyncio.sleep(0)
                model_call.answer.read_chunk(chunk[begin : begin + PIECE_BYTES])
            yield chunk
        error = None if model_call.answer.ended else "the model server's stream broke off"
    except (aiohttp.ClientError, TimeoutError, OSError) as failure:
        error = f"the model server's stream broke off ({type(failure).__name__})"
        detail = {"message": error, "type": "server_error", "code": "model_server_failed"}
        yield b"data: " + orjson.dumps({"error": detail}) + b"\n\n"
    finally:
        reply.close()
        finish(reply.response.status, error)


async def _record_hang_up(reply: Reply, finish: Finish) -> None:
    """Record a stream whose caller hung up before its first piece.

    Then nothing of `_relay` has run, and its `finally` does not run either.
    """
    if not finish.finished:
        reply.close()
        finish(reply.response.status, "cancelled")
