"""The stand-in: it answers every model's calls while no model is configured.

It speaks OpenAI's protocol, so a first call works before there is a model. Its answer says how to
configure one. The gateway calls it like any model server.
"""

from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from infra.gateway.http.problems import ProblemError
from schemas.clock import now
from schemas.identifiers import new_event_id
from schemas.routes import STAND_IN

PATH = "/stand-in/v1"
TEXT = (
    "This is Everloop's stand-in, not a language model. To have a model answer, set"
    " models.NAME.base_url and models.NAME.model in everloop.toml, and start Everloop again."
)
router = APIRouter(prefix=PATH, include_in_schema=False)


@router.post("/chat/completions")
async def chat(request: Request) -> Response:
    """Answer a chat request, as a stream if the request asks for one."""
    body = await request.json()
    if not body.get("stream"):
        choice = {"index": 0, "message": _MESSAGE, "finish_reason": "stop"}
        return JSONResponse(_head("chat.completion") | {"choices": [choice], "usage": _USAGE})
    return StreamingResponse(_chunks(), media_type="text/event-stream")


@router.post("/completions")
async def completion(request: Request) -> Response:
    """Answer a completion request, as a stream if the request asks for one."""
    choice = {"index": 0, "text": TEXT, "finish_reason": "stop", "logprobs": None}
    document = _head("text_completion") | {"choices": [choice]}
    if not (await request.json()).get("stream"):
        return JSONResponse(document | {"usage": _USAGE})
    chunks = [_event(document), b"data: [DONE]\n\n"]
    return StreamingResponse(iter(chunks), media_type="text/event-stream")


@router.post("/responses")
async def response(request: Request) -> Response:
    """Answer a request of the Responses API, as a stream if the request asks for one."""
    part = {"type": "output_text", "text": TEXT, "annotations": []}
    message = {
        "type": "message",
        "id": "msg_stand_in",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    head = _head("response") | {"status": "completed", "output": [message], "usage": usage}
    if not (await request.json()).get("stream"):
        return JSONResponse(head)
    # The order that OpenAI's clients expect: begun, its message, its text, done.
    place = {"output_index": 0, "content_index": 0, "item_id": message["id"]}
    opened = message | {"status": "in_progress", "content": []}
    told: list[dict[str, Any]] = [
        {"type": "response.created", "response": head | {"status": "in_progress", "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": opened},
        {"type": "response.content_part.added", **place, "part": part | {"text": ""}},
        {"type": "response.output_text.delta", **place, "delta": TEXT, "logprobs": []},
        {"type": "response.output_text.done", **place, "text": TEXT, "logprobs": []},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": message},
        {"type": "response.completed", "response": head},
    ]
    events = [_event(event | {"sequence_number": number}) for number, event in enumerate(told)]
    return StreamingResponse(iter(events), media_type="text/event-stream")


@router.post("/embeddings")
async def embeddings() -> JSONResponse:
    """Refuse. Made-up numbers would look like embeddings.

    Raises:
        ProblemError: 501.
    """
    raise ProblemError(501, "No model", f"the stand-in has no embeddings. {TEXT}")


_MESSAGE: dict[str, Any] = {"role": "assistant", "content": TEXT}
_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def _head(kind: str) -> dict[str, Any]:
    created = int(now().timestamp())
    return {"id": new_event_id(), "object": kind, "created": created, "model": STAND_IN}


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"


async def _chunks() -> AsyncIterator[bytes]:
    head = _head("chat.completion.chunk")
    for delta, reason in (_MESSAGE, None), ({}, "stop"):
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        yield _event(head | {"choices": [choice]})
    yield b"data: [DONE]\n\n"
