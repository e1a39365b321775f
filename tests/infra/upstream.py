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
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, **message},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    shared = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "tiny-1",
    }
    return b"data: " + orjson.dumps(shared | {"choices": choices} | more) + b"\n\n"


def response(response_id: str) -> dict[str, Any]:
    text = {"type": "output_text", "text": "hello there", "annotations": []}
    message = {
        "type": "message",
        "id": "msg-1",
        "role": "assistant",
        "status": "completed",
        "content": [text],
    }
    called = {
        "type": "function_call",
        "id": "fc-1",
        "call_id": "call_1",
        "name": "search",
        "arguments": "{}",
    }
    return {
        "id": response_id,
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "tiny-1",
        "output": [message, called | {"status": "completed"}],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 7,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 9,
        },
    }


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
        self.headers: list[dict[str, str]] = []
        self.failures = 0
        self.retry_after = "3"
        self.app.post("/v1/chat/completions")(self._answer)
        self.app.post("/v1/completions")(self._complete)
        self.app.post("/v1/responses")(self._respond)
        self.app.post("/v1/embeddings")(self._embed)
        self.app.get("/v1/models")(self._models)

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        self._note(request, body)
        if self.failures > 0:
            self.failures -= 1
            return JSONResponse({"error": {"message": "not now"}}, 503)
        if body.get("stream"):
            return StreamingResponse(self._stream(body["model"]), media_type="text/event-stream")
        match body["model"]:
            case "overloaded":
                return JSONResponse(
                    {"error": {"message": "too many"}},
                    429,
                    headers={"retry-after": self.retry_after},
                )
            case "failing":
                return JSONResponse({"error": {"message": "out of memory"}}, 500)
            case "gibberish":
                return Response(b"<html>", media_type="text/html")
            case "slow":
                await asyncio.sleep(5)
            case "clumsy" | "hopeless":
                mended = body["model"] == "clumsy" and body["messages"][-1]["role"] == "tool"
                function = {
                    "name": "search",
                    "arguments": '{"query": "x"}' if mended else '{"question": 3}',
                }
                return JSONResponse(completion(None, tool_calls=[CALL | {"function": function}]))
            case "detailed":
                answer = completion() | {"prompt_token_ids": [5, 6]}
                answer["choices"][0] |= {
                    "token_ids": [1, 2],
                    "logprobs": {
                        "content": [
                            {"token": "a", "logprob": -0.5},
                            {"token": "b", "logprob": -0.25},
                        ]
                    },
                }
                return JSONResponse(answer)
        return JSONResponse(completion())

    def _note(self, request: Request, body: dict[str, Any]) -> None:
        self.asked.append(body)
        self.keys.append(request.headers.get("authorization"))
        self.headers.append(dict(request.headers))

    async def _models(self) -> Response:
        return JSONResponse({"object": "list", "data": []}, 503 if self.failures > 0 else 200)

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self._note(request, body)
        logprobs = {
            "tokens": ["a"],
            "token_logprobs": [-0.5],
            "top_logprobs": None,
            "text_offset": [0],
        }
        choice = {
            "index": 0,
            "text": " world",
            "finish_reason": "length",
            "logprobs": logprobs,
            "token_ids": [4],
        }
        answer = {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1,
            "model": "tiny-1",
            "choices": [choice],
        }
        return JSONResponse(
            answer | {"usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}}
        )

    async def _respond(self, request: Request) -> Response:
        body = await request.json()
        self._note(request, body)
        answer = response(f"resp-{len(self.asked)}")
        if body["model"] == "plain":
            answer["output"] = answer["output"][:1]
        if not body.get("stream"):
            return JSONResponse(answer)

        async def said() -> AsyncIterator[bytes]:
            begun = {
                "type": "response.created",
                "sequence_number": 0,
                "response": answer | {"output": []},
            }
            delta = {"type": "response.output_text.delta", "sequence_number": 1, "item_id": "msg-1"}
            delta |= {"output_index": 0, "content_index": 0, "delta": "hello there", "logprobs": []}
            done = {"type": "response.completed", "sequence_number": 2, "response": answer}
            for event in (begun, delta, done):
                yield f"event: {event['type']}\ndata: ".encode() + orjson.dumps(event) + b"\n\n"

        return StreamingResponse(said(), media_type="text/event-stream")

    async def _embed(self, request: Request) -> Response:
        self._note(request, await request.json())
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}]
        answer = {
            "object": "list",
            "data": data,
            "model": "tiny-1",
            "usage": {"prompt_tokens": 2, "total_tokens": 2},
        }
        return JSONResponse(answer)

    async def _stream(self, model: str) -> AsyncIterator[bytes]:
        try:
            for number, event in enumerate(SAID):
                if model == "plain" and b"tool_calls" in event:
                    continue
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
