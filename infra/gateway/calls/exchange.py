"""A model call from beginning to end: placed, sent, passed back, recorded."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import aiohttp
import orjson
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from pydantic import ValidationError
from starlette.background import BackgroundTask

from infra.gateway.calls.faults import fault_of_call, fault_of_refusal
from infra.gateway.calls.formats import CHAT, Api
from infra.gateway.calls.model_call import ModelCall
from infra.gateway.calls.placement import Placement, place_call, record_placement
from infra.gateway.calls.shadows import send_shadows
from infra.gateway.calls.tool_calls import InvalidToolCallError
from infra.gateway.http.context import (
    CHECKPOINT_HEADER,
    ROLLOUT_HEADER,
    SPAN_HEADER,
    SPLIT_HEADER,
    CallContext,
)
from infra.gateway.http.problems import ProblemError
from infra.gateway.http.threads import run_aside
from infra.gateway.models.servers import Reply, UpstreamError
from infra.gateway.routes.table import LoadedRoute, Target
from infra.gateway.state.conversations import Transcript
from infra.gateway.state.services import Services
from schemas.clock import now_nanoseconds
from schemas.rollouts import Fault
from schemas.serialization import readable

SENT_ON = ("accept", "openai-beta", "openai-organization", "openai-project", "x-request-id")
"""Headers of a request that a model server gets; above all not the caller's key."""

PASSED_BACK = ("retry-after", "x-request-id")
PASSED_BACK_PREFIXES = ("openai-", "x-ratelimit-")


# A caller that hangs up costs a model server at most this much longer. Looking more often would
# cost every call a task.
LOOK_EVERY_S = 0.25

PIECE_BYTES = 8 * 1024
"""So much of a stream is read in less than a millisecond."""


class Observer(Protocol):
    """Who wants to hear of a call.

    Both methods are called once. If the request is refused, neither is called.
    """

    def on_begin(self, model_call: ModelCall) -> None:
        """Hear that a call is about to be sent."""
        ...

    def on_end(self, model_call: ModelCall, status: int | None, error: str | None) -> None:
        """Hear that it has ended.

        Args:
            status: the server's HTTP status; None if it gave none.
            error: what went wrong; None if nothing did.
        """
        ...


async def serve(
    services: Services,
    api: Api,
    request: Request,
    call: CallContext,
    body: dict[str, Any],
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
        size: int = getattr(request.state, "body_bytes", 0)
        try:
            await run_aside(size, api.request.model_validate, body)
        except ValidationError as error:
            raise ProblemError(400, "Invalid request", readable(error)) from error
        services.limits.check(call.caller.key)

        # 2. Find its rollout and the version that serves it. From here to the first `try` of the
        # call nothing may wait: a cancelled wait would leave the conversation busy for ever.
        transcript = None
        if call.rollout_id is None:
            transcript = await run_aside(size, _transcript, api, call, body)
        placement = place_call(services, api, call, body, resolved, transcript)

    # 3. Record the rollout, its versions and the choice first: the span refers to them.
    record_placement(services, call, placement)

    # 4. Tell the observer, and send copies to the shadows.
    rollout_id, route = placement.rollout_id, placement.route
    key = call.key(rollout_id)
    group, (split, _) = services.routing.group(key), services.routing.split(key)
    model_call = ModelCall(
        api, call, rollout_id, group, placement.body, placement.target, split, size
    )
    if observer is not None:
        observer.on_begin(model_call)
    if route.shadows:
        send_shadows(services, route, model_call)

    # 5. Ask, and pass the answer back. The span is recorded when the answer ends.
    repairs = services.settings.tool_calls == "repair" and api is CHAT
    finish = _Finish(services, model_call, placement, observer, repairs)
    try:
        return await _call(services, request, route, model_call, finish)
    except InvalidToolCallError as invalid:
        if not repairs:
            raise ProblemError(502, "Invalid tool call", str(invalid)) from invalid
        again = model_call.repair_call()

    # 6. Ask once more for tool calls that no schema allows.
    finish = _Finish(services, again, placement, None)
    try:
        return await _call(services, request, route, again, finish)
    except InvalidToolCallError as invalid:
        raise ProblemError(
            502, "Invalid tool call", f"asked again, the model answered: {invalid}"
        ) from invalid


def _transcript(api: Api, call: CallContext, body: dict[str, Any]) -> Transcript:
    caller = call.caller
    return Transcript(caller.tenant, caller.key_id, body, api.messages(body))


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
    finish: "_Finish",
) -> Response:
    """Send a call and return the answer.

    Raises:
        ProblemError: no model server answered.
        InvalidToolCallError: the model called a tool against the caller's schema, and the settings
            do not let that pass.
    """
    watch = _Watch(request)
    try:
        sent = {name: value for name in SENT_ON if (value := request.headers.get(name)) is not None}
        headers = {**sent, "content-type": "application/json", "accept-encoding": "identity"}
        reply = await services.upstreams.ask(
            (model_call.target, *route.fallbacks),
            model_call.api.path,
            model_call.body,
            headers,
            model_call.size,
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


class _Watch:
    """Cancels a call whose caller hangs up before there is an answer.

    Most calls are over before it first looks, so they pay for one timer and no task.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(LOOK_EVERY_S, self._begin_look)
        self._looking: asyncio.Task[None] | None = None
        self._hung_up = False

    def close(self) -> None:
        """Stop looking."""
        self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()

    def end(self) -> None:
        """Turn our own cancellation into an answer. Otherwise the server would log a defect.

        Raises:
            ProblemError: 499. Nobody reads it, because the caller hung up.
        """
        if self._hung_up:
            raise ProblemError(499, "Cancelled", "the caller hung up")

    def _begin_look(self) -> None:
        self._looking = self._loop.create_task(self._look())

    async def _look(self) -> None:
        if await self._request.is_disconnected():
            self._hung_up = True
            if self._task is not None:
                self._task.cancel()
        else:
            self._timer = self._loop.call_later(LOOK_EVERY_S, self._begin_look)


async def _pass_back(model_call: ModelCall, reply: Reply, finish: "_Finish") -> Response:
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
        model_call.size += len(content)
        await run_aside(model_call.size, _read_answer, model_call, content)
    except (aiohttp.ClientError, TimeoutError, OSError) as failure:
        reason = f"{upstream.url.origin()}: the answer broke off ({type(failure).__name__})"
        finish(upstream.status, reason)
        status = 504 if isinstance(failure, TimeoutError) else 502
        raise ProblemError(status, "Model server failed", reason, headers) from failure
    except asyncio.CancelledError:
        finish(upstream.status, "cancelled")
        raise
    finally:
        reply.close()
    error = None if upstream.ok else f"status {upstream.status}"
    if error is None and model_call.invalid_calls and not finish.lets_invalid_through:
        reason = "; ".join(model_call.invalid_calls.values())
        # The model's own doing, and so the agent's: it must not escape a reward by it.
        finish(upstream.status, f"invalid tool call: {reason}", "agent", goes_on=finish.repairs)
        raise InvalidToolCallError(reason)
    if finish.awaited:
        finish(upstream.status, error)
        return Response(content, upstream.status, headers=headers, media_type=kind)
    recorded = BackgroundTask(finish.later, upstream.status, error)
    return Response(content, upstream.status, headers=headers, media_type=kind, background=recorded)


def _read_answer(model_call: ModelCall, content: bytes) -> None:
    """Read the answer, and look at its tool calls, which `invalid_calls` keeps."""
    model_call.answer.read_body(content)
    _ = model_call.invalid_calls


async def _relay(model_call: ModelCall, reply: Reply, finish: "_Finish") -> AsyncIterator[bytes]:
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


async def _record_hang_up(reply: Reply, finish: "_Finish") -> None:
    """Record a stream whose caller hung up before its first piece.

    Then nothing of `_relay` has run, and its `finally` does not run either.
    """
    if not finish.finished:
        reply.close()
        finish(reply.response.status, "cancelled")


class _Finish:
    """Records the end of a call.

    Attributes:
        finished: whether it is recorded.
        repairs: whether the model is asked again if it calls a tool against its schema.
    """

    def __init__(
        self,
        services: Services,
        model_call: ModelCall,
        placement: Placement,
        observer: Observer | None,
        repairs: bool = False,
    ) -> None:
        self.repairs = repairs
        self._services = services
        self._model_call = model_call
        self._placement = placement
        self._observer = observer
        self.finished = False

    @property
    def awaited(self) -> bool:
        """Whether the call must be recorded before the answer is passed back."""
        return self._observer is not None

    @property
    def lets_invalid_through(self) -> bool:
        """Whether invalid tool calls are passed back. A trainer's agents always get them."""
        return self._services.settings.tool_calls == "pass" or self._observer is not None

    async def later(self, status: int | None, error: str | None) -> None:
        """Record after the answer was passed back, so that the caller does not wait for it."""
        self(status, error)

    def __call__(
        self,
        status: int | None,
        error: str | None,
        fault: Fault | None = None,
        goes_on: bool = False,
    ) -> None:
        """Record the end.

        Args:
            fault: whose failure it is. None: status and error say it.
            goes_on: whether another call repairs this one. Then that call ends the turn.
        """
        self.finished = True
        services, model_call = self._services, self._model_call
        ended, wrong = now_nanoseconds(), error or model_call.answer.damaged
        services.record_span(
            model_call.key, model_call.size, partial(model_call.span, status, wrong, ended)
        )
        failed = wrong is not None
        if wrong is not None and fault is None:
            fault = fault_of_call(status, wrong)
        services.routing.note_fault(model_call.key, fault if failed else None)
        _count(services, model_call, _outcome(status, error, failed))
        conversation, transcript = self._placement.conversation, self._placement.transcript
        if conversation is not None and transcript is not None and not goes_on:
            answer = model_call.answer
            said = transcript.after(answer.messages, answer.id)
            services.conversations.answered(conversation, said, failed)
        if self._observer is not None:
            self._observer.on_end(model_call, status, wrong)


def _count(services: Services, model_call: ModelCall, outcome: str) -> None:
    counts, model, answer = services.counts, str(model_call.body["model"]), model_call.answer
    counts.requests[outcome] += 1
    counts.tokens[model, "input"] += answer.input_tokens or 0
    counts.tokens[model, "output"] += answer.output_tokens or 0
    counts.cost[model] += model_call.cost
    if model_call.invalid_calls:
        counts.invalid_tool_calls[model, model_call.target.version] += len(model_call.invalid_calls)
    key = model_call.call.caller.key
    services.limits.add_usage(
        key, answer.input_tokens or 0, answer.output_tokens or 0, model_call.cost
    )


def _outcome(status: int | None, error: str | None, failed: bool) -> str:
    if error == "cancelled":
        return "cancelled"
    if not failed:
        return "served"
    return "refused" if status is not None and 400 <= status < 500 else "failed"
