"""For how long requests of adversarial sizes keep all other requests of the gateway waiting."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import httpx
import orjson
import uvloop
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from infra.gateway.settings import GatewaySettings
from streams.processors.promotion_state import baseline_route
from tests.benchmarks.gateway import process
from tests.conftest import serving
from tests.infra.conftest import metrics_of, model_route, publish

MOST_BYTES = GatewaySettings().max_body_bytes
ROUNDS = 5
FORGOTTEN_S = 1.2
SMALL: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
GAUGE = "everloop_event_loop_delay_seconds"


def measured(folder: Path) -> dict[str, Any]:
    """Return the longest delay of the event loop while each kind of request is served, in ms.

    It is the median of a few rounds: the machine's other processes delay the loop as well.
    """
    with serving(_model_server()) as upstream:
        publish(
            folder / "log.db", model_route("tiny", upstream), baseline_route("supervisor-policy")
        )
        environment = {"EVERLOOP_DATA_DIR": str(folder)}
        with process("-m", "tests.benchmarks.watched", environment=environment) as gateway:
            url = f"http://127.0.0.1:{gateway.port}"
            httpx.get(f"{url}/healthz", timeout=30)
            _warm(url)
            return {
                name: median(uvloop.run(_longest_ms(url, path, make())) for _ in range(ROUNDS))
                for name, (path, make) in REQUESTS.items()
            }


def _warm(url: str) -> None:
    """Have each way of the gateway gone once: what is loaded on first use is not its load."""
    for path, make in REQUESTS.values():
        httpx.post(url + path, content=make(small=True), headers=HEADERS, timeout=60)


HEADERS = {"content-type": "application/json"}


async def _longest_ms(url: str, path: str, content: bytes) -> float:
    """Return the longest delay while one request is served, in ms, as `/metrics` tells it."""
    longest = 0.0
    async with aiohttp.ClientSession(read_bufsize=2**22) as session:
        await asyncio.sleep(FORGOTTEN_S)  # until nothing of before is remembered

        async def ask() -> None:
            async with session.post(url + path, data=content, headers=HEADERS) as answer:
                await answer.read()
                assert answer.status in (200, 400), answer.status
            await asyncio.sleep(0.4)  # spans are written after the answer

        asking = asyncio.create_task(ask())
        ended = False
        while not ended:
            ended = asking.done()  # looked at once more after the end
            await asyncio.sleep(0.1)
            async with session.get(f"{url}/metrics") as metrics:
                ((_, value),) = metrics_of(await metrics.text(), GAUGE)
                longest = max(longest, value)
        asking.result()
    return round(longest * 1000, 1)


def _chat(**more: Any) -> bytes:
    return orjson.dumps(SMALL | more)


def _text(small: bool = False) -> bytes:
    words = 10 if small else (MOST_BYTES - 200) // 5
    return _chat(messages=[{"role": "user", "content": "word " * words}])


def _letters(small: bool = False) -> bytes:
    words = 10 if small else (MOST_BYTES - 200) // 11
    return _chat(messages=[{"role": "user", "content": "слово " * words}])


def _messages(small: bool = False) -> bytes:
    roles = ["user", "assistant"] * (1 if small else 5_000)
    return _chat(messages=[{"role": role, "content": "how are you? " * 8} for role in roles])


def _no_messages(small: bool = False) -> bytes:
    return _chat(messages=[{}] * (1 if small else 20_000))


def _deep(small: bool = False) -> bytes:
    value: Any = 1
    for _ in range(80):
        value = {"a": value}
    return _chat(messages=[{"role": "user", "content": [value] * (1 if small else 1000)}])


def _too_deep(small: bool = False) -> bytes:
    return b'{"a":' + b"[" * (200 if small else MOST_BYTES - 100)


def _numbers(small: bool = False) -> bytes:
    return _chat(messages=[{"role": "user", "content": [1] * (10 if small else 1_000_000)}])


def _tools(small: bool = False) -> bytes:
    properties = {f"p{number}": {"type": "string", "description": "x" * 50} for number in range(10)}
    schema = {"type": "object", "properties": properties}
    names = [f"t{number}" for number in range(1 if small else 1000)]
    functions = [{"name": name, "description": "d" * 500, "parameters": schema} for name in names]
    return _chat(tools=[{"type": "function", "function": one} for one in functions])


def _candidates(small: bool = False) -> bytes:
    texts = ["word " * 2000] * (2 if small else 1000)
    candidates = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    body = {"rollout_id": "r", "policy": "supervisor-policy", "candidates": candidates}
    return orjson.dumps(body)


def _spans(small: bool = False) -> bytes:
    said = {"key": "input.value", "value": {"stringValue": "word " * 100}}
    times = {"startTimeUnixNano": "1", "endTimeUnixNano": "2"}
    spans = [
        {"traceId": "0" * 31 + "1", "spanId": f"{number:016x}", "name": "work"}
        | {"attributes": [said], **times}
        for number in range(1, 3 if small else 10_001)
    ]
    return orjson.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]})


def _long_stream(small: bool = False) -> bytes:
    return _chat(stream=True, user="short" if small else "long")


def _large_answer(small: bool = False) -> bytes:
    return _chat(user="short" if small else "large")


CHAT, DECISIONS, TRACES = "/v1/chat/completions", "/everloop/v1/decisions", "/v1/traces"
REQUESTS: dict[str, tuple[str, Callable[..., bytes]]] = {
    "small call": (CHAT, lambda small=False: _chat()),
    "16 MiB of text in one message": (CHAT, _text),
    "16 MiB of Cyrillic in one message": (CHAT, _letters),
    "10,000 messages, 1.4 MB": (CHAT, _messages),
    "20,000 empty messages, 60 kB": (CHAT, _no_messages),
    "1,000 parts nested 80 deep, 0.5 MB": (CHAT, _deep),
    "16 MiB of brackets (refused)": (CHAT, _too_deep),
    "1,000,000 numbers in one message, 2 MB": (CHAT, _numbers),
    "1,000 tools, 1.5 MB": (CHAT, _tools),
    "1,000 candidates of 10 kB": (DECISIONS, _candidates),
    "an export of 10,000 spans, 7 MB": (TRACES, _spans),
    "20,000 chunks of a stream": (CHAT, _long_stream),
    "an answer of 8 MiB": (CHAT, _large_answer),
}


def _model_server() -> FastAPI:
    """Return a model server whose answer is as long as `user` says."""
    app = FastAPI()
    message = {"role": "assistant", "content": "hello"}
    answer = {"id": "a", "object": "chat.completion", "created": 1, "model": "tiny"}
    answer |= {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    short = orjson.dumps(answer)
    large = short.replace(b"hello", b"word " * (8 * 2**20 // 5))
    delta = {"choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]}
    chunk = b"data: " + orjson.dumps(answer | {"object": "chat.completion.chunk"} | delta) + b"\n\n"

    async def chunks(count: int) -> Any:
        for _ in range(count // 20):
            yield chunk * 20
            await asyncio.sleep(0)
        yield b"data: [DONE]\n\n"

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        body = await request.json()
        if body.get("stream"):
            count = 20_000 if body.get("user") == "long" else 20
            return StreamingResponse(chunks(count), media_type="text/event-stream")
        content = large if body.get("user") == "large" else short
        return Response(content, media_type="application/json")

    return app
