"""The server's HTTP API: OpenAI's chat completions and completions, and vLLM's adapter routes."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.serving.huggingface.generation import (
    Generated,
    GenerationEngine,
    Sampling,
    UnknownModelError,
    UnloadableError,
)
from learners.graders import TOOL_CALL, valid_call


class TextRequest(BaseModel):
    """The fields of a request that are read. Unknown fields are ignored, as vLLM does."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[dict[str, Any]] | None = Field(default=None, min_length=1)
    prompt: str | list[int] | None = None
    tools: list[dict[str, Any]] = []
    tool_choice: Literal["auto", "none", "required"] | dict[str, Any] = "auto"
    stop: str | list[str] = []
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    n: int = Field(default=1, ge=1, le=64)
    seed: int | None = None
    stream: bool = False
    logprobs: bool | int | None = None
    return_token_ids: bool = False


class AdapterRequest(BaseModel):
    """Which adapter to load or unload."""

    lora_name: str = Field(min_length=1)
    lora_path: Path | None = None


class UnanswerableError(Exception):
    """A request that cannot be answered; the message says why."""


def create_app(engine: GenerationEngine) -> FastAPI:
    """Return a server of an engine."""
    app = FastAPI(title="Everloop model server", docs_url=None, redoc_url=None)

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "everloop"}
            for name in engine.names
        ]
        return {"object": "list", "data": data}

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await _complete(engine, await request.body(), chat=True)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _complete(engine, await request.body(), chat=False)

    @app.post("/v1/load_lora_adapter")
    async def load_adapter(asked: AdapterRequest) -> Response:
        if asked.lora_path is None:
            return _problem(400, "lora_path is missing")
        if asked.lora_name in engine.names:
            return _problem(400, f"{asked.lora_name} is loaded already; unload it first")
        await asyncio.to_thread(engine.load_adapter, asked.lora_name, asked.lora_path)
        return Response(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    @app.post("/v1/unload_lora_adapter")
    async def unload_adapter(asked: AdapterRequest) -> Response:
        await asyncio.to_thread(engine.unload_adapter, asked.lora_name)
        return Response(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")

    @app.exception_handler(UnknownModelError)
    async def unknown(_: Request, error: UnknownModelError) -> Response:
        return _problem(404, str(error), "model_not_found")

    @app.exception_handler(UnloadableError)
    async def unloadable(_: Request, error: UnloadableError) -> Response:
        return _problem(400, str(error))

    @app.exception_handler(UnanswerableError)
    async def unanswerable(_: Request, error: UnanswerableError) -> Response:
        return _problem(400, str(error))

    return app


async def _complete(engine: GenerationEngine, content: bytes, chat: bool) -> Response:
    try:
        asked = TextRequest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        return _problem(400, f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}")
    prompt = _prompt(engine, asked, chat)
    left = engine.context - len(prompt)
    if left < 1:
        raise UnanswerableError(
            f"the prompt has {len(prompt)} tokens; the model takes {engine.context} with the answer"
        )
    most = min(left, asked.max_completion_tokens or asked.max_tokens or left)
    # Each of the n answers needs a seed of its own, or all would be the same.
    seeds = [None if asked.seed is None else asked.seed + index for index in range(asked.n)]
    answers = await asyncio.gather(
        *(
            asyncio.wrap_future(
                engine.ask(
                    asked.model, prompt, Sampling(most, asked.temperature, asked.top_p, seed)
                )
            )
            for seed in seeds
        )
    )
    answers = [_cut_at_stop(engine, answer, asked.stop) for answer in answers]
    document = _document(engine, asked, prompt, answers, chat)
    # Made whole and then sent: a small model answers fast, and tool calls are found only at the
    # end.
    if asked.stream:
        return StreamingResponse(_chunks(document, chat), media_type="text/event-stream")
    return Response(orjson.dumps(document), media_type="application/json")


def _prompt(engine: GenerationEngine, asked: TextRequest, chat: bool) -> list[int]:
    """Return the prompt's token ids."""
    tokenizer: Any = engine.tokenizer
    if not chat:
        if asked.prompt is None:
            raise UnanswerableError("prompt is missing")
        return (
            asked.prompt
            if isinstance(asked.prompt, list)
            else list(tokenizer(asked.prompt)["input_ids"])
        )
    if asked.messages is None:
        raise UnanswerableError("messages are missing")
    tools = [] if asked.tool_choice == "none" else asked.tools
    try:
        text = tokenizer.apply_chat_template(
            asked.messages, tools=tools or None, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template may raise anything, and does so on purpose
        raise UnanswerableError(f"the chat template refuses the messages: {error}") from error
    # The template has written the special tokens already.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _cut_at_stop(engine: GenerationEngine, answer: Generated, stop: str | list[str]) -> Generated:
    """Return an answer up to the token that completes a stop sequence. The text ends before the
    sequence.
    """
    sequences = [stop] if isinstance(stop, str) else stop
    if not any(sequence in answer.text for sequence in sequences):
        return answer
    # Token by token: token ids and log-probabilities must end where the text ends.
    for count in range(1, len(answer.token_ids) + 1):
        text = engine.text(answer.token_ids[:count])
        found = [text.index(sequence) for sequence in sequences if sequence in text]
        if found:
            return Generated(
                answer.token_ids[:count], answer.logprobs[:count], text[: min(found)], "stop"
            )
    return answer


def _document(
    engine: GenerationEngine,
    asked: TextRequest,
    prompt: list[int],
    answers: list[Generated],
    chat: bool,
) -> dict[str, Any]:
    """Return a completion as OpenAI writes it, with vLLM's token ids."""
    choices = [_choice(engine, asked, index, answer, chat) for index, answer in enumerate(answers)]
    completed = sum(len(answer.token_ids) for answer in answers)
    document: dict[str, Any] = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid4().hex}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": asked.model,
        "choices": choices,
        "usage": {
            "prompt_tokens": len(prompt),
            "completion_tokens": completed,
            "total_tokens": len(prompt) + completed,
        },
    }
    if asked.return_token_ids:
        if chat:
            document["prompt_token_ids"] = prompt
        else:
            choices[0]["prompt_token_ids"] = prompt
    return document


def _choice(
    engine: GenerationEngine, asked: TextRequest, index: int, answer: Generated, chat: bool
) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": index,
        "finish_reason": answer.finish_reason,
        "logprobs": None,
    }
    if chat:
        choice["message"] = message = _message(answer.text.strip(), asked)
        if message.get("tool_calls"):
            choice["finish_reason"] = "tool_calls"
    else:
        choice["text"] = answer.text
    if asked.return_token_ids:
        choice["token_ids"] = answer.token_ids
    if asked.logprobs is not None and asked.logprobs is not False:
        tokens = [engine.text([token]) for token in answer.token_ids]
        if chat:
            content = [
                {
                    "token": token,
                    "logprob": logprob,
                    "bytes": list(token.encode()),
                    "top_logprobs": [],
                }
                for token, logprob in zip(tokens, answer.logprobs, strict=True)
            ]
            choice["logprobs"] = {"content": content}
        else:
            choice["logprobs"] = {"tokens": tokens, "token_logprobs": answer.logprobs}
    return choice


def _message(text: str, asked: TextRequest) -> dict[str, Any]:
    """Return the assistant's message. If the text is one valid call of a tool, the call is taken
    out of the text, as vLLM's parsers do.
    """
    message: dict[str, Any] = {"role": "assistant", "content": text}
    found = TOOL_CALL.match(text) if asked.tools and asked.tool_choice != "none" else None
    try:
        called = valid_call(json.loads(found[1]), asked.tools) if found else None
    except (json.JSONDecodeError, RecursionError):
        called = None
    if called is None:
        return message
    arguments = json.dumps(called.arguments, separators=(",", ":"))
    call = {"id": f"call_{uuid4().hex[:24]}", "type": "function"}
    before = text[: text.index("<tool_call>")].strip()
    return message | {
        "content": before or None,
        "tool_calls": [{**call, "function": {"name": called.name, "arguments": arguments}}],
    }


async def _chunks(document: dict[str, Any], chat: bool) -> AsyncIterator[bytes]:
    """Yield a completion as a stream: all of an answer in one piece, then its end."""
    head = {name: document[name] for name in ("id", "created", "model")}
    kind = "chat.completion.chunk" if chat else "text_completion"
    for choice in document["choices"]:
        piece = {
            name: value
            for name, value in choice.items()
            if name not in ("message", "finish_reason")
        }
        if chat:
            piece["delta"] = choice["message"]
            for number, call in enumerate(piece["delta"].get("tool_calls") or ()):
                call["index"] = number
        more = (
            {"prompt_token_ids": document["prompt_token_ids"]}
            if "prompt_token_ids" in document
            else {}
        )
        yield _server_sent_event(
            head | {"object": kind, "choices": [piece | {"finish_reason": None}]} | more
        )
        end: dict[str, Any] = {
            "index": choice["index"],
            "finish_reason": choice["finish_reason"],
            "logprobs": None,
        }
        end["delta" if chat else "text"] = {} if chat else ""
        yield _server_sent_event(head | {"object": kind, "choices": [end]})
    yield _server_sent_event(head | {"object": kind, "choices": [], "usage": document["usage"]})
    yield b"data: [DONE]\n\n"


def _server_sent_event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _problem(status: int, detail: str, code: str = "invalid_request") -> JSONResponse:
    error = {"message": detail, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": error}, status_code=status)
