"""Model servers that fail: asked again before the first byte, left alone for a while, replaced by a
fallback.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.config.settings import Settings
from infra.gateway.models.servers import Breaker, seconds_of
from infra.gateway.settings import GatewaySettings, UpstreamSettings
from schemas.endpoints import Endpoint
from schemas.rollouts import RolloutEvent
from schemas.routes import RouteTarget
from schemas.spans import Attribute, SpanEvent
from schemas.topics import ROLLOUTS, SPANS
from tests import events
from tests.conftest import serving
from tests.infra.conftest import Gateway, metrics_of, model_route, publish, running_gateway
from tests.infra.upstream import Upstream
from tests.waiting import eventually

ABSENT = "http://127.0.0.1:9/v1"


@contextmanager
def patient(tmp_path: Path, *routes: Any, **upstream: Any) -> Iterator[Gateway]:
    """A gateway that asks again."""
    asking = {
        "backoff_s": 0.01,
        "most_backoff_s": 0.02,
        "health_interval_s": 0.05,
        "breaker_open_s": 60,
    } | upstream
    settings = Settings(
        data_dir=tmp_path / "data",
        gateway=GatewaySettings(
            upstream_timeout_s=0.5, upstream=UpstreamSettings(**asking), conversation_idle_s=0.5
        ),
    )
    publish(settings.log_path, *routes)
    with running_gateway(settings) as gateway:
        yield gateway


def fallback(url: str, version: str = "spare") -> RouteTarget:
    return RouteTarget(
        version=version, endpoint=Endpoint(base_url=f"{url}/v1", model="spare-model")
    )


def test_a_server_that_cannot_answer_now_is_asked_again(
    tmp_path: Path, upstream: Upstream, upstream_url: str
) -> None:
    upstream.failures = 2
    with patient(tmp_path, model_route("tiny", upstream_url)) as gateway:
        assert gateway.chat().is_success
        (span,) = gateway.soon(SPANS, SpanEvent)
    assert len(upstream.asked) == 3
    assert span.payload.attributes[Attribute.ATTEMPTS] == 3
    assert span.payload.status == "ok"


def test_the_last_answer_is_passed_back_when_asking_again_did_not_help(
    tmp_path: Path, upstream: Upstream, upstream_url: str
) -> None:
    with patient(tmp_path, model_route("failing", upstream_url)) as gateway:
        answer = gateway.chat("failing")
    assert answer.status_code == 500
    assert answer.json() == {"error": {"message": "out of memory"}}
    assert len(upstream.asked) == 3


def test_a_request_that_is_wrong_is_not_repeated(tmp_path: Path, upstream: Upstream) -> None:
    with (
        serving(upstream.app) as url,
        patient(tmp_path, model_route("tiny", f"{url}/nowhere")) as gateway,
    ):
        assert gateway.chat().status_code == 404
        (span,) = gateway.soon(SPANS, SpanEvent)
    assert span.payload.attributes[Attribute.ATTEMPTS] == 1


def test_a_long_wait_that_a_server_asks_for_is_the_callers(
    tmp_path: Path, upstream: Upstream, upstream_url: str
) -> None:
    upstream.retry_after = "30"
    with patient(tmp_path, model_route("overloaded", upstream_url)) as gateway:
        answer = gateway.chat("overloaded")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")
    assert len(upstream.asked) == 1


@pytest.mark.parametrize("model", ["failing", "slow"])
def test_a_fallback_answers_and_the_span_says_so(
    tmp_path: Path, upstream: Upstream, upstream_url: str, model: str
) -> None:
    route = model_route(model, upstream_url).model_copy(
        update={"fallbacks": [fallback(upstream_url)]}
    )
    with patient(tmp_path, route, retries=0) as gateway:
        answer = gateway.chat(model)
        (span,) = gateway.soon(SPANS, SpanEvent)
    assert answer.is_success
    assert answer.headers["x-everloop-checkpoint"] == "spare"
    assert span.payload.attributes[Attribute.CHECKPOINT] == "spare"
    assert [body["model"] for body in upstream.asked] == [model, "spare-model"]


def test_fallbacks_are_tried_in_order(tmp_path: Path, upstream_url: str) -> None:
    nobody = RouteTarget(version="nobody", endpoint=Endpoint(base_url=ABSENT, model="x"))
    route = model_route("tiny", "http://127.0.0.1:9").model_copy(
        update={"fallbacks": [nobody, fallback(upstream_url)]}
    )
    with patient(tmp_path, route, retries=1) as gateway:
        assert gateway.chat().headers["x-everloop-checkpoint"] == "spare"
        (span,) = gateway.soon(SPANS, SpanEvent)
    assert span.payload.attributes[Attribute.ATTEMPTS] == 5


def test_a_stream_is_never_begun_twice(
    tmp_path: Path, upstream: Upstream, upstream_url: str
) -> None:
    route = model_route("cut-off", upstream_url).model_copy(
        update={"fallbacks": [fallback(upstream_url)]}
    )
    body = {"model": "cut-off", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with (
        patient(tmp_path, route) as gateway,
        gateway.http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        received = b"".join(answer.iter_raw())
        (span,) = gateway.soon(SPANS, SpanEvent)
    assert received.count(b"hello") == 1
    assert b"model_server_failed" in received
    assert len(upstream.asked) == 1
    assert span.payload.status == "error"


def test_a_server_that_fails_again_and_again_is_left_alone_until_it_is_back(
    tmp_path: Path, upstream: Upstream, upstream_url: str
) -> None:
    upstream.failures = 4
    with patient(
        tmp_path, model_route("tiny", upstream_url), retries=0, breaker_failures=3
    ) as gateway:
        statuses = [gateway.chat().status_code for _ in range(5)]
        assert statuses == [503] * 5
        assert len(upstream.asked) == 3
        assert "left alone" in gateway.chat().json()["detail"]
        ((_, up),) = metrics_of(gateway.http.get("/metrics").text, "everloop_endpoint_up")
        assert up == 0
        upstream.failures = 0  # a health check finds out, without a call of anybody
        eventually(lambda: gateway.chat().is_success, "the server that is back")


def test_a_circuit_lets_one_call_try_when_its_time_has_come() -> None:
    config = UpstreamSettings(breaker_failures=2, breaker_open_s=0.05)
    breaker = Breaker()
    assert not breaker.record_failure(config)
    assert breaker.record_failure(config)
    assert not breaker.admit()
    time.sleep(0.06)
    assert breaker.admit()
    assert not breaker.admit()
    breaker.record_failure(config)
    assert not breaker.admit()
    time.sleep(0.06)
    assert breaker.admit()
    breaker.release_trial()
    assert breaker.admit()
    assert breaker.record_success()
    assert breaker.admit()
    assert not breaker.record_success()


def test_a_trial_that_could_not_be_made_leaves_the_circuit_to_another(
    tmp_path: Path, upstream: Upstream, upstream_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.failures = 2
    route = model_route("tiny", upstream_url, api_key_env="TEST_MODEL_KEY")
    brief = {"retries": 0, "breaker_failures": 2, "breaker_open_s": 0.05, "health_interval_s": 60}
    monkeypatch.setenv("TEST_MODEL_KEY", "sk-secret")
    with patient(tmp_path, route, **brief) as gateway:
        assert [gateway.chat().status_code for _ in range(2)] == [503, 503]
        time.sleep(0.1)
        monkeypatch.delenv("TEST_MODEL_KEY")
        assert "holds no key" in gateway.chat().json()["detail"]
        monkeypatch.setenv("TEST_MODEL_KEY", "sk-secret")
        assert gateway.chat().is_success


def test_the_callers_key_and_cookies_go_no_further(gateway: Gateway, upstream: Upstream) -> None:
    sent = {
        "authorization": "Bearer mine",
        "x-api-key": "mine",
        "cookie": "a=b",
        "openai-beta": "x=1",
    }
    assert gateway.chat(headers=sent).is_success
    (got,) = upstream.headers
    assert "mine" not in str(got)
    assert "cookie" not in got
    assert got["openai-beta"] == "x=1"


def test_a_shadow_gets_a_copy_that_nobody_sees_and_nobody_learns_from(
    tmp_path: Path, upstream: Upstream, upstream_url: str
) -> None:
    shadow = fallback(upstream_url, "next")
    route = model_route("tiny", upstream_url).model_copy(update={"shadows": [shadow]})
    with patient(tmp_path, route) as gateway:
        assert (
            gateway.chat(headers={"x-everloop-rollout-id": "r1"}).headers["x-everloop-checkpoint"]
            == "v1"
        )
        spans = gateway.soon(SPANS, SpanEvent, 2)
        rollouts = gateway.soon(ROLLOUTS, RolloutEvent, 3)
        ((_, copies),) = metrics_of(
            gateway.http.get("/metrics").text, "everloop_shadow_requests_total"
        )
    assert {
        span.rollout_id for span in spans if span.payload.attributes[Attribute.CHECKPOINT] == "v1"
    } == {"r1"}
    (copy,) = [span for span in spans if span.payload.attributes[Attribute.CHECKPOINT] == "next"]
    assert copy.rollout_id.startswith("shadow/next/")
    assert copy.payload.attributes[Attribute.GROUP] == "shadow:next"
    states = [
        (r.payload.state, r.payload.split) for r in rollouts if r.rollout_id == copy.rollout_id
    ]
    assert [state for state, _ in states] == ["started", "succeeded"]
    assert states[0][1] == "test"
    assert copies == 1


def test_a_share_of_zero_shadows_nothing(
    tmp_path: Path, upstream: Upstream, upstream_url: str
) -> None:
    shadow = fallback(upstream_url, "next").model_copy(update={"weight": 0.0})
    with patient(
        tmp_path, model_route("tiny", upstream_url).model_copy(update={"shadows": [shadow]})
    ) as gateway:
        for _ in range(5):
            gateway.chat()
        gateway.soon(SPANS, SpanEvent, 5)
    assert {body["model"] for body in upstream.asked} == {"tiny"}


def test_tokens_and_cost_are_counted(tmp_path: Path, upstream_url: str) -> None:
    route = model_route("tiny", upstream_url, input_price=100.0, output_price=1000.0)
    with patient(tmp_path, route) as gateway:
        gateway.chat()
        (span,) = gateway.soon(SPANS, SpanEvent)
        text = gateway.http.get("/metrics").text
    assert span.payload.attributes[Attribute.COST] == pytest.approx(
        0.0027
    )  # 7 at 100 and 2 at 1000 a million
    ((model, cost),) = metrics_of(text, "everloop_cost_total")
    assert model == {"model": "tiny"}
    assert cost == pytest.approx(0.0027)
    tokens = {
        labels["direction"]: count for labels, count in metrics_of(text, "everloop_tokens_total")
    }
    assert tokens == {"input": 7, "output": 2}


def test_tokens_are_asked_for_where_the_server_says_them(
    tmp_path: Path, upstream: Upstream, upstream_url: str
) -> None:
    with patient(
        tmp_path,
        model_route("detailed", upstream_url, tokens=True),
        model_route("tiny", upstream_url),
    ) as gateway:
        gateway.chat("detailed", logprobs=False)
        gateway.chat("tiny")
        gateway.http.post("/v1/completions", json={"model": "detailed", "prompt": "hi"})
        first, *_ = gateway.soon(SPANS, SpanEvent, 3)
    chat, plain, text = upstream.asked
    assert (chat["return_token_ids"], chat["logprobs"]) == (True, True)
    assert "return_token_ids" not in plain
    assert "logprobs" not in plain
    assert (text["return_token_ids"], text["logprobs"]) == (True, 1)
    assert first.payload.attributes[Attribute.RESPONSE_TOKEN_IDS] == [1, 2]
    assert first.payload.attributes[Attribute.RESPONSE_LOGPROBS] == [-0.5, -0.25]


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("30", 30.0),
        ("0", 0.0),
        ("Thu, 01 Jan 2026 00:00:05 GMT", 5.0),
        ("Thursday, 01-Jan-26 00:00:05 GMT", 5.0),
        ("Thu Jan  1 00:00:05 2026", 5.0),
        ("Wed, 31 Dec 2025 23:59:00 GMT", 0.0),
        *((nothing, 0.0) for nothing in ("²", "٣", "-1", "1.5", "soon", "", "Thu, 99 Jan 2026")),
        ("9" * 5000, float("inf")),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_nothing_else(asked: str, seconds: float) -> None:
    assert seconds_of(asked, events.START) == seconds
