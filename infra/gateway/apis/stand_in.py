"""The stand-in: answers every model's calls while no model is configured.

It speaks OpenAI's protocol, so a first call works before there is a model. What it says tells how
to get one. The gateway calls it like any model server.
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
    """Answer a chat, as a stream where one is asked for."""
    body = await request.json()
    if not body.get("stream"):
        choice = {"index": 0, "message": _MESSAGE, "finish_reason": "stop"}
        return JSONResponse(_head("chat.completion") | {"choices": [choice], "usage": _USAGE})
    return StreamingResponse(_chunks(), media_type="text/event-stream")


@router.post("/completions")
async def completion() -> JSONResponse:
    """Answer a prompt."""
    choice = {"index": 0, "text": TEXT, "finish_reason": "stop", "logprobs": None}
    return JSONResponse(_head("text_completion") | {"choices": [choice], "usage": _USAGE})


@router.post("/responses")
async def response() -> JSONResponse:
    """Answer a request of the responses API."""
    content = [{"type": "output_text", "text": TEXT, "annotations": []}]
    message = {
        "type": "message",
        "id": "msg_stand_in",
        "role": "assistant",
        "status": "completed",
        "content": content,
    }
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    head = _head("response") | {"status": "completed", "output": [message], "usage": usage}
    return JSONResponse(head)


@router.post("/embeddings")
async def embeddings() -> JSONResponse:
    """Refuse: numbers that mean nothing would be taken for a meaning.

    Raises:
        ProblemError: 501.
    """
    raise ProblemError(501, "No model", f"the stand-in has no embeddings. {TEXT}")


_MESSAGE: dict[str, Any] = {"role": "assistant", "content": TEXT}
_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def _head(kind: str) -> dict[str, Any]:
    created = int(now().timestamp())
    return {"id": new_event_id(), "object": kind, "created": created, "model": STAND_IN}


async def _chunks() -> AsyncIterator[bytes]:
    head = _head("chat.completion.chunk")
    for delta, reason in (_MESSAGE, None), ({}, "stop"):
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        yield b"data: " + orjson.dumps(head | {"choices": [choice]}) + b"\n\n"
    yield b"data: [DONE]\n\n"
