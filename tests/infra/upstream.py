"""A model server for tests that speaks the real protocol and misbehaves on request."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse


def completion(content: str | None = "hello there", **message: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "tiny-1",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    shared = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny-1"}
    return b"data: " + orjson.dumps(shared | {"choices": choices} | more) + b"\n\n"


CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "search", "arguments": '{"query": "x"}'},
}
SAID = [
    chunk({"role": "assistant"}),
    chunk({"content": "hello"}),
    chunk({"content": " there"}),
    chunk({"tool_calls": [{"index": 0, **CALL}]}),
    chunk({}, "stop", usage={"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}),
]


class Upstream:
    """What was asked, and how to answer: the model's name says."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.hung_up = False
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self._answer)

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.keys.append(request.headers.get("authorization"))
        if body.get("stream"):
            return StreamingResponse(self._stream(body["model"]), media_type="text/event-stream")
        match body["model"]:
            case "overloaded":
                return JSONResponse({"error": {"message": "too many"}}, 429, headers={"retry-after": "3"})
            case "failing":
                return JSONResponse({"error": {"message": "out of memory"}}, 500)
            case "gibberish":
                return Response(b"<html>", media_type="text/html")
            case "slow":
                await asyncio.sleep(5)
            case "detailed":
                answer = completion() | {"prompt_token_ids": [5, 6]}
                answer["choices"][0] |= {
                    "token_ids": [1, 2],
                    "logprobs": {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]},
                }
                return JSONResponse(answer)
        return JSONResponse(completion())

    async def _stream(self, model: str) -> AsyncIterator[bytes]:
        try:
            for number, event in enumerate(SAID):
                yield event[:20]  # events need not come in one piece
                yield event[20:]
                if model == "cut-off" and number == 1:
                    raise RuntimeError("the server dies")
                if model == "half":
                    return
                if model == "endless":
                    await asyncio.sleep(0.05)
            while model == "endless":
                yield chunk({"content": " and"})
                await asyncio.sleep(0.05)
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.hung_up = True
            raise
