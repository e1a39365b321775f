"""The simulator's HTTP server: OpenAI chat completions with tools, streamed or not."""

import re
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from research_society.simulator.roles import JUNIORS, UnplayableError, answer

MODEL = "society-simulator"
SEARCH = "pubmed_search"

_ROLE = re.compile(r"You are the (.+?) of a biomedical research society")
_STREAMED_WORDS = 8

Message = dict[str, Any]


def create_app() -> FastAPI:
    """Return the simulator."""
    app = FastAPI(title="Everloop society simulator", docs_url=None, redoc_url=None)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": MODEL}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "everloop"}],
        }

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        try:
            body = orjson.loads(await request.body())
            message = reply(body["messages"], body.get("tools") or [])
        except (orjson.JSONDecodeError, KeyError, TypeError, UnplayableError) as error:
            detail = {
                "message": str(error),
                "type": "invalid_request_error",
                "code": "cannot_simulate",
            }
            return JSONResponse({"error": detail}, status_code=400)
        completion = _completion(body["messages"], message)
        if body.get("stream"):
            return StreamingResponse(_chunks(completion), media_type="text/event-stream")
        return Response(orjson.dumps(completion), media_type="application/json")

    return app


def reply(messages: list[Message], tools: list[dict[str, Any]]) -> Message:
    """Return the assistant's message: a literature search first where the role is a junior with
    tools, else its answer.

    Raises:
        UnplayableError: the messages are not those of a role of the society.
    """
    role = _role(messages)
    results = [str(message.get("content")) for message in messages if message.get("role") == "tool"]
    given = _given(messages)
    offered = {tool.get("function", {}).get("name") for tool in tools}
    if role in JUNIORS and SEARCH in offered and not results:
        arguments = orjson.dumps({"query": given.get("research_goal", "")}).decode()
        call = {
            "id": f"call_{uuid4().hex}",
            "type": "function",
            "function": {"name": SEARCH, "arguments": arguments},
        }
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"role": "assistant", "content": orjson.dumps(answer(role, given, results)).decode()}


def _role(messages: list[Message]) -> str:
    for message in messages:
        if message.get("role") == "system" and (found := _ROLE.search(str(message.get("content")))):
            return found[1]
    raise UnplayableError(
        "the simulator needs a system message that begins with `You are the … of a biomedical …`"
    )


def _given(messages: list[Message]) -> dict[str, Any]:
    for message in messages:
        content = str(message.get("content"))
        if message.get("role") == "user" and content.startswith("Input:\n"):
            try:
                given = orjson.loads(content.removeprefix("Input:\n"))
            except orjson.JSONDecodeError as error:
                raise UnplayableError(f"what follows `Input:` is not JSON: {error}") from error
            if isinstance(given, dict):
                return given
    raise UnplayableError(
        "the simulator needs a user message that begins with `Input:` and a JSON object"
    )


def _completion(messages: list[Message], message: Message) -> dict[str, Any]:
    """Return a completion. The simulator has no tokenizer: it counts words."""
    asked = sum(len(str(given.get("content") or "").split()) for given in messages)
    said = len(orjson.dumps(message).split())
    return {
        "id": f"chatcmpl-{uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": "tool_calls" if message.get("tool_calls") else "stop",
            }
        ],
        "usage": {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
    }


def _chunks(completion: dict[str, Any]) -> Iterator[bytes]:
    """Yield a completion as server-sent events, a few words each."""
    choice = completion["choices"][0]
    message = choice["message"]
    words = re.findall(r"\S+\s*", message["content"] or "")
    deltas: list[Message] = [{"role": "assistant"}]
    deltas += [
        {"content": "".join(words[i : i + _STREAMED_WORDS])}
        for i in range(0, len(words), _STREAMED_WORDS)
    ]
    if calls := message.get("tool_calls"):
        deltas.append({"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]})
    for delta in deltas:
        yield _event(completion, [{"index": 0, "delta": delta, "finish_reason": None}])
    yield _event(completion, [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}])
    yield _event(completion, [], usage=completion["usage"])
    yield b"data: [DONE]\n\n"


def _event(completion: dict[str, Any], choices: list[dict[str, Any]], **more: Any) -> bytes:
    shared = {name: completion[name] for name in ("id", "created", "model")}
    chunk = {**shared, "object": "chat.completion.chunk", "choices": choices, **more}
    return b"data: " + orjson.dumps(chunk) + b"\n\n"
