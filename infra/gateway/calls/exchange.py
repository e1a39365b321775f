"""A model call from beginning to end: placed, sent, passed back, recorded."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Protocol

import aiohttp
import orjson
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.background import BackgroundTask

from infra.gateway.calls.faults import fault_of_call, fault_of_refusal
from infra.gateway.calls.formats import CHAT, Api
from infra.gateway.calls.model_call import Ending, ModelCall
from infra.gateway.calls.placement import Placement, place_call, record_placement
from infra.gateway.calls.requests import Asked, read_request
from infra.gateway.calls.shadows import send_shadows
from infra.gateway.calls.tool_calls import InvalidToolCallError
from infra.gateway.http.context import (
    CHECKPOINT_HEADER,
    ROLLOUT_HEADER,
    SPAN_HEADER,
    SPLIT_HEADER,
    CallContext,
)
from infra.gateway.http.documents import Document
from infra.gateway.http.problems import ProblemError
from infra.gateway.http.readers import Readers
from infra.gateway.models.servers import Reply, UpstreamError
from infra.gateway.routes.table import LoadedRoute, Target
from infra.gateway.state.services import Services
from schemas.rollouts import Fault

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
    finish = _Finish(services, model_call, placement, observer, repairs)
    try:
        return await _call(services, request, route, model_call, finish)
    except InvalidToolCallError as invalid:
        if not repairs:
            raise ProblemError(502, "Invalid tool call", str(invalid)) from invalid
        again = await model_call.repair_call()
    finish = _Finish(services, again, placement, None)
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

    @property
    def readers(self) -> Readers | None:
        """Who reads a large answer. An observer wants it in memory."""
        return self._services.readers if self._observer is None else None

    async def later(self, status: int | None, error: str | None, ending: Ending) -> None:
        """Record after the answer was passed back, so that the caller does not wait for it."""
        self(status, error, None, ending)

    def __call__(
        self,
        status: int | None,
        error: str | None,
        fault: Fault | None = None,
        ending: Ending | None = None,
        goes_on: bool = False,
    ) -> None:
        """Record the end.

        Args:
            fault: whose failure it is. None: status and error say it.
            ending: of a whole answer. None: what has come of the answer says it.
            goes_on: whether another call repairs this one. Then that call ends the turn.
        """
        self.finished = True
        services, model_call = self._services, self._model_call
        ending, whole = ending or model_call.ending(), ending is not None
        wrong = error or ending.damaged
        model_call.record(services, status, wrong, counted=whole)
        failed = wrong is not None
        if wrong is not None and fault is None:
            fault = fault_of_call(status, wrong)
        services.routing.note_fault(model_call.key, fault if failed else None)
        _count(services, model_call, ending, _outcome(status, error, failed))
        conversation = self._placement.conversation
        if conversation is not None and not goes_on:
            services.conversations.note_answer(conversation, ending.said, failed)
        if self._observer is not None:
            self._observer.on_end(model_call, status, wrong)


def _count(services: Services, model_call: ModelCall, ending: Ending, outcome: str) -> None:
    counts, model = services.counts, model_call.model
    tokens = ending.input_tokens, ending.output_tokens
    cost = model_call.cost(*tokens)
    counts.requests[outcome] += 1
    counts.tokens[model, "input"] += ending.input_tokens
    counts.tokens[model, "output"] += ending.output_tokens
    counts.cost[model] += cost
    if ending.invalid_calls:
        version = model_call.target.version
        counts.invalid_tool_calls[model, version] += len(ending.invalid_calls)
    services.limits.add_usage(model_call.call.caller.key, *tokens, cost)


def _outcome(status: int | None, error: str | None, failed: bool) -> str:
    if error == "cancelled":
        return "cancelled"
    if not failed:
        return "served"
    return "refused" if status is not None and 400 <= status < 500 else "failed"
