"""At least 5,000 malformed and hostile requests: each is refused with a problem body, and nothing
else changes.
"""

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode

from infra.config.settings import Settings
from infra.gateway.settings import GatewaySettings, UpstreamSettings
from schemas.rewards import RewardEvent
from schemas.spans import SpanEvent
from schemas.topics import REWARDS, SPANS
from streams.processors.promotion_state import baseline_route
from tests.infra.conftest import Gateway, model_route, publish, running_gateway
from tests.infra.gateway.mutations import mutated, sent, valid_requests
from tests.waiting import eventually

MUTATIONS = 3500
PER_OPERATION = 60
PROBLEM = b"application/problem+json"


@pytest.fixture(scope="module")
def hardened(tmp_path_factory: pytest.TempPathFactory, hostile_upstream: str) -> Iterator[Gateway]:
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("hostile"),
        gateway=GatewaySettings(
            max_body_bytes=200_000,
            body_timeout_s=0.3,
            upstream_timeout_s=1.0,
            conversation_idle_s=30,
            upstream=UpstreamSettings(retries=0, breaker_failures=10_000),
        ),
    )
    routes = [model_route(name, hostile_upstream) for name in ("tiny", *BROKEN_STREAMS)]
    publish(settings.log_path, *routes, baseline_route("supervisor-policy"))
    with running_gateway(settings) as gateway:
        yield gateway


BROKEN_STREAMS: dict[str, bytes] = {
    "not-json": b"data: {oops\n\ndata: [DONE]\n\n",
    "not-utf8": b'data: {"choices": "\xff\xfe"}\n\ndata: [DONE]\n\n',
    "no-end": b'data: {"choices": []}\n\n',
    "index-bomb": b'data: {"choices": [{"index": 1000000000, "delta": {"content": "x"}}]}\n\n'
    b"data: [DONE]\n\n",
    "call-bomb": b'data: {"choices": [{"delta": {"tool_calls": [{"index": 99999999}]}}]}\n\n'
    b"data: [DONE]\n\n",
    "negative": b'data: {"choices": [{"index": -5, "delta": {"content": "x"}}]}\n\n'
    b"data: [DONE]\n\n",
    "wrong-types": b'data: {"id": 3, "choices": [{"delta": {"content": 5}}], "usage": []}\n\n'
    b"data: [DONE]\n\n",
    "nothing-in-it": b'data: {"choices": [{"index": null, "delta": null}]}\n\ndata: [DONE]\n\n',
    "list": b"data: []\n\ndata: 3\n\ndata: [DONE]\n\n",
    "huge-line": b"data: " + b"x" * 3_000_000,
    "deep": b"data: " + b"[" * 5000 + b"\n\ndata: [DONE]\n\n",
    "empty": b"",
    "nul": b"\x00" * 100,
}


@pytest.fixture(scope="module")
def hostile_upstream() -> Iterator[str]:
    """A model server that answers by the model's name: sensibly, or with a broken stream."""
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response

    from tests.conftest import serving
    from tests.infra.upstream import completion

    app = FastAPI()

    @app.post("/v1/{path:path}")
    async def answer(request: Request, path: str) -> Response:
        body = await request.json()
        if body["model"] in BROKEN_STREAMS:
            return Response(BROKEN_STREAMS[body["model"]], media_type="text/event-stream")
        return JSONResponse(completion())

    with serving(app) as url:
        yield url


def port_of(gateway: Gateway) -> int:
    return int(gateway.url.rsplit(":", 1)[1])


def is_healthy(gateway: Gateway) -> bool:
    health = gateway.health()
    return bool(health["status"] == "ok" and not health["events"]["lost"])


@pytest.mark.slow
def test_mutated_requests_are_refused_with_a_problem_body_and_no_reward_is_lost(
    hardened: Gateway,
) -> None:
    chance = random.Random(7)
    sources = valid_requests()
    contents = [mutated(chance.choice(sources), chance) for _ in range(MUTATIONS)]
    before = len(hardened.events(REWARDS, RewardEvent))

    async def all_sent() -> list[bytes]:
        answers: list[bytes] = []
        for start in range(0, len(contents), 250):
            answers += await asyncio.gather(
                *(sent(port_of(hardened), c) for c in contents[start : start + 250])
            )
        return answers

    answers = asyncio.run(all_sent())
    outcomes: Counter[int] = Counter()
    accepted = 0
    for content, answer in zip(contents, answers, strict=True):
        if not answer:
            outcomes[0] += 1  # closed without a word: the request never came to an end
            continue
        status = int(answer.split(b" ", 2)[1])
        outcomes[status] += 1
        if status >= 400 and not content.startswith(b"HEAD"):
            assert PROBLEM in answer.lower(), (content[:300], answer[:300])
            document = orjson.loads(answer.partition(b"\r\n\r\n")[2])
            assert {"title", "status", "detail", "error"} <= document.keys()
            assert b"Traceback" not in answer
        assert status != 500, (content[:500], answer)
        accepted += status == 202 and b"/rewards" in content.split(b"\r\n", 1)[0]
    assert (
        sum(count for status, count in outcomes.items() if 400 <= status < 500) > MUTATIONS / 3
    ), outcomes
    assert outcomes[0] < MUTATIONS / 3, outcomes
    assert is_healthy(hardened)
    assert hardened.chat().is_success
    assert accepted > 0
    assert len(hardened.events(REWARDS, RewardEvent)) - before >= accepted


@pytest.mark.slow
def test_what_the_schema_allows_and_what_it_does_not_is_never_a_defect(hardened: Gateway) -> None:
    schema = schemathesis.openapi.from_url(f"{hardened.url}/openapi.json")
    tried: Counter[str] = Counter()
    for found in schema.get_all_operations():
        operation = cast(Any, found).ok()
        if (
            operation.path in ("/proxy/pause", "/proxy/resume")
            or "/everloop/v1/routes" in operation.path
        ):
            continue  # what operators do changes what the others are answered
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                tried[operation.label] += _tried(operation.as_strategy(generation_mode=mode))
            except Unsatisfiable:
                assert (
                    mode is GenerationMode.NEGATIVE
                )  # an operation that takes anything cannot be asked wrongly
    assert sum(tried.values()) > 1500, tried
    assert is_healthy(hardened)


def _tried(cases: SearchStrategy[Any]) -> int:
    count = 0

    @hypothesis_settings(
        max_examples=PER_OPERATION,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def check(case: Any) -> None:
        nonlocal count
        count += 1
        answer = case.call(timeout=20)
        assert answer.status_code != 500, (case, answer.text)
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == [PROBLEM.decode()] or _is_paused(answer), case

    check()
    return count


def _is_paused(answer: Any) -> bool:
    return "x-agl-paused" in answer.headers


def test_broken_streams_are_passed_on_recorded_as_errors_and_cost_no_memory(
    hardened: Gateway,
) -> None:
    for model, stream in BROKEN_STREAMS.items():
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": True}
        named = {"x-everloop-rollout-id": f"broken-{model}"}
        with hardened.http.stream(
            "POST", "/v1/chat/completions", json=body, headers=named
        ) as answer:
            assert b"".join(answer.iter_raw()) == stream, model

        def recorded(rollout: str = f"broken-{model}") -> list[SpanEvent]:
            return [
                event for event in hardened.events(SPANS, SpanEvent) if event.rollout_id == rollout
            ]

        (span,) = eventually(recorded, f"the span of {model}")
        assert span.payload.status == ("ok" if model == "nothing-in-it" else "error"), model
    assert is_healthy(hardened)


def test_headers_of_a_model_server_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    body = b'{"choices": []}'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: \xff/json\r\n"
    head += b"x-request-id: \xfe\xff\r\nopenai-version: 1\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async def asked() -> httpx.Response:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        settings = Settings(data_dir=tmp_path / "data")
        publish(settings.log_path, model_route("odd", f"http://127.0.0.1:{port}"))
        with running_gateway(settings) as gateway:
            answered = await asyncio.to_thread(gateway.chat, "odd")
        server.close()
        return answered

    found = asyncio.run(asked())
    assert (found.status_code, found.content) == (200, body)
    assert found.headers["content-type"] == "application/octet-stream"
    assert found.headers["openai-version"] == "1"
    assert "x-request-id" not in found.headers


def test_a_head_that_never_ends_is_refused_before_it_fills_the_memory(hardened: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", port_of(hardened))) as connection:
        connection.settimeout(5)
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nx: ")
        answer = b""
        try:
            for _ in range(200):
                connection.sendall(b"a" * 4096)
            answer = connection.recv(65_536)
        except (BrokenPipeError, ConnectionResetError):
            answer = answer or b"closed"
    assert answer == b"closed" or b" 431 " in answer
    assert is_healthy(hardened)


def test_many_connections_that_say_nothing_hold_nobody_up(hardened: Gateway) -> None:
    silent = [socket.create_connection(("127.0.0.1", port_of(hardened))) for _ in range(200)]
    try:
        for connection in silent[::2]:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 100\r\n\r\n{"
            )
        assert hardened.chat().is_success
    finally:
        for connection in silent:
            connection.close()
    assert is_healthy(hardened)


def test_answers_carry_security_headers_and_no_cors(hardened: Gateway, tmp_path: Path) -> None:
    answer = hardened.http.get("/v1/models", headers={"origin": "https://evil.example"})
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers
    assert not any(name.startswith("access-control") for name in answer.headers)
    allowed = Settings(
        data_dir=tmp_path, gateway=GatewaySettings(cors_origins=("https://good.example",))
    )
    with running_gateway(allowed) as gateway:
        for origin, granted in (("https://good.example", True), ("https://evil.example", False)):
            found = gateway.http.get("/v1/models", headers={"origin": origin})
            assert ("access-control-allow-origin" in found.headers) is granted
