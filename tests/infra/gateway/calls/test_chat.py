"""Chat completions through the gateway: passed on as they are, recorded as they were, errors said
clearly.
"""

import gzip
from typing import Any

import httpx
import orjson
import pytest
from openai import OpenAI

from infra.config.settings import Settings
from schemas.rollouts import RolloutEvent, RolloutState
from schemas.spans import Attribute, SpanEvent
from schemas.topics import ROLLOUTS, SPANS
from tests.infra.conftest import Gateway, model_route, publish, running_gateway
from tests.infra.upstream import CALL, SAID, Upstream
from tests.waiting import eventually

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MESSAGES: Any = [{"role": "user", "content": "hi"}]


def attributes(span: SpanEvent) -> dict[str, Any]:
    return span.payload.attributes


def test_the_official_client_gets_its_answer_and_the_span_says_what_it_cost(
    gateway: Gateway,
) -> None:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="any") as client:
        answer = client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            temperature=0.5,
            max_tokens=10,
            extra_headers={
                "x-everloop-rollout-id": "r1",
                "x-everloop-node": "writer",
                "traceparent": TRACEPARENT,
            },
        )
        assert answer.choices[0].message.content == "hello there"
        assert "tiny" in [model.id for model in client.models.list()]
    (span,) = gateway.soon(SPANS, SpanEvent)
    assert span.rollout_id == "r1"
    assert span.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert span.payload.parent_span_id == "b7ad6b7169203331"
    assert span.payload.status == "ok"
    assert span.payload.end_unix_nano > span.payload.start_unix_nano
    said = attributes(span)
    assert said[Attribute.INPUT_TOKENS] == 7
    assert said[Attribute.OUTPUT_TOKENS] == 2
    assert said[Attribute.REQUEST_MODEL] == "tiny"
    assert said[Attribute.RESPONSE_MODEL] == "tiny-1"
    assert said[Attribute.REQUEST_TEMPERATURE] == 0.5
    assert said[Attribute.NODE] == "writer"
    assert said[Attribute.CHECKPOINT] == "v1"
    assert "hello there" in orjson.dumps(said[Attribute.OUTPUT_MESSAGES]).decode()


def test_a_stream_comes_through_byte_for_byte_and_is_recorded_whole(gateway: Gateway) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "stream": True}
    with gateway.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        received = b"".join(answer.iter_raw())
    assert received == b"".join(SAID) + b"data: [DONE]\n\n"
    (span,) = gateway.soon(SPANS, SpanEvent)
    said = attributes(span)
    recorded = orjson.dumps(said[Attribute.OUTPUT_MESSAGES]).decode()
    assert "hello there" in recorded
    assert CALL["id"] in recorded
    assert said[Attribute.STREAMED] is True
    assert said[Attribute.TIME_TO_FIRST_TOKEN] > 0
    assert said[Attribute.OUTPUT_TOKENS] == 2


def test_what_the_gateway_does_not_know_is_passed_on(gateway: Gateway, upstream: Upstream) -> None:
    gateway.chat(tools=[{"type": "function", "function": {"name": "search"}}], top_k=3)
    assert upstream.asked[0]["top_k"] == 3
    assert upstream.asked[0]["tools"][0]["function"]["name"] == "search"
    assert upstream.asked[0]["model"] == "tiny"


def test_token_ids_and_log_probabilities_are_kept_for_the_learners(gateway: Gateway) -> None:
    gateway.chat("detailed")
    said = attributes(gateway.soon(SPANS, SpanEvent)[0])
    assert said[Attribute.PROMPT_TOKEN_IDS] == [5, 6]
    assert said[Attribute.RESPONSE_TOKEN_IDS] == [1, 2]
    assert said[Attribute.RESPONSE_LOGPROBS] == [-0.5, -0.25]


def test_a_call_that_names_no_rollout_is_one_of_its_own_that_ends_when_nothing_continues_it(
    gateway: Gateway,
) -> None:
    rollout_id = gateway.chat().headers["x-everloop-rollout-id"]
    states = [
        (event.rollout_id, event.payload.state) for event in gateway.soon(ROLLOUTS, RolloutEvent, 2)
    ]
    assert states == [(rollout_id, RolloutState.STARTED), (rollout_id, RolloutState.SUCCEEDED)]


def test_a_named_rollout_is_announced_once_and_left_open(gateway: Gateway) -> None:
    for _ in range(3):
        gateway.chat(headers={"x-everloop-rollout-id": "r1"})
    gateway.soon(SPANS, SpanEvent, 3)
    (announced,) = gateway.events(ROLLOUTS, RolloutEvent)
    assert announced.payload.state == RolloutState.STARTED
    assert announced.payload.checkpoints == {"tiny": "v1"}


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        (b"[1]", 400, "must be a JSON object, not list"),
        (b"{}", 400, "model"),
        (b'{"model": "tiny"}', 400, "messages"),
        (b'{"model": "tiny", "messages": []}', 400, "messages"),
        (b'{"model": "tiny", "messages": ["hi"]}', 400, "messages"),
        (
            b'{"model": "nobody", "messages": [{"role": "user", "content": "hi"}]}',
            404,
            "there is no model 'nobody'",
        ),
        (
            b'{"model": "supervisor-policy", "messages": [{"role": "user"}]}',
            404,
            "there is no model",
        ),
        (b"x" * 100_001, 413, "longer than 100000 bytes"),
    ],
)
def test_a_request_that_cannot_be_served_is_a_problem_document(
    gateway: Gateway, body: bytes, status: int, says: str
) -> None:
    answer = gateway.http.post("/v1/chat/completions", content=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status
    assert says in document["detail"]
    assert document["error"]["message"] == document["detail"]
    assert gateway.events(SPANS, SpanEvent) == []


@pytest.mark.parametrize("header", ["x-everloop-rollout-id", "x-everloop-node"])
def test_a_header_that_cannot_be_a_name_is_refused(gateway: Gateway, header: str) -> None:
    answer = gateway.chat(headers={header: "../etc passwd"})
    assert answer.status_code == 400
    assert header in answer.json()["detail"]


@pytest.mark.parametrize(
    ("model", "status", "outcome", "error"),
    [
        ("overloaded", 429, "refused", "429"),
        ("failing", 500, "failed", "500"),
        ("absent", 502, "failed", "unavailable"),
        ("slow", 504, "failed", "unavailable"),
    ],
)
def test_a_model_server_that_fails_is_answered_for_and_recorded(
    gateway: Gateway, model: str, status: int, outcome: str, error: str
) -> None:
    answer = gateway.chat(model)
    assert answer.status_code == status
    assert "error" in answer.json()
    (span,) = gateway.soon(SPANS, SpanEvent)
    assert span.payload.status == "error"
    assert attributes(span)[Attribute.ERROR_TYPE] == error
    assert gateway.health()["requests"] == {outcome: 1}
    assert gateway.soon(ROLLOUTS, RolloutEvent, 2)[1].payload.state == RolloutState.FAILED


def test_an_answer_that_is_no_completion_is_passed_on_and_recorded_as_damaged(
    gateway: Gateway,
) -> None:
    assert gateway.chat("gibberish").content == b"<html>"
    (span,) = gateway.soon(SPANS, SpanEvent)
    assert "not JSON" in span.payload.status_message


@pytest.mark.parametrize("model", ["half", "cut-off"])
def test_a_stream_that_breaks_off_is_recorded_as_an_error(gateway: Gateway, model: str) -> None:
    body = {"model": model, "messages": MESSAGES, "stream": True}
    with gateway.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        received = b"".join(answer.iter_raw())
    assert b"[DONE]" not in received
    (span,) = gateway.soon(SPANS, SpanEvent)
    assert span.payload.status == "error"
    assert gateway.health()["requests"] == {"failed": 1}


def test_a_caller_who_hangs_up_cancels_the_model_server_too(
    gateway: Gateway, upstream: Upstream
) -> None:
    body = {"model": "endless", "messages": MESSAGES, "stream": True}
    with gateway.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_raw())
    (span,) = gateway.soon(SPANS, SpanEvent)
    assert attributes(span)[Attribute.ERROR_TYPE] == "cancelled"
    assert eventually(lambda: upstream.hung_up, "the model server's end of the stream")
    assert gateway.health()["requests"] == {"cancelled": 1}


def test_a_caller_who_hangs_up_before_the_answer_cancels_the_call(
    settings: Settings, upstream_url: str
) -> None:
    patient = settings.gateway.model_copy(update={"upstream_timeout_s": 30.0})
    publish(settings.log_path, model_route("slow", upstream_url))
    with running_gateway(settings.model_copy(update={"gateway": patient})) as gateway:
        with pytest.raises(httpx.ReadTimeout):
            gateway.http.post(
                "/v1/chat/completions", json={"model": "slow", "messages": MESSAGES}, timeout=0.2
            )
        (span,) = gateway.soon(SPANS, SpanEvent)
        assert attributes(span)[Attribute.ERROR_TYPE] == "cancelled"
        assert gateway.health()["requests"] == {"cancelled": 1}


def test_a_key_comes_from_the_environment_and_goes_to_the_model_server_alone(
    gateway: Gateway, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = gateway.chat("keyed")
    assert refused.status_code == 503
    assert "TEST_MODEL_KEY" in refused.json()["detail"]
    monkeypatch.setenv("TEST_MODEL_KEY", "sk-secret")
    assert gateway.chat("keyed").is_success
    assert upstream.keys == ["Bearer sk-secret"]
    gateway.soon(SPANS, SpanEvent, 1)
    assert b"sk-secret" not in gateway.settings.log_path.read_bytes()


def test_what_is_not_there_and_what_is_not_allowed_are_problem_documents(gateway: Gateway) -> None:
    missing, wrong = gateway.http.get("/v2/chat"), gateway.http.get("/v1/chat/completions")
    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert missing.json()["error"]["type"] == "invalid_request_error"


def test_a_gateway_with_nothing_to_serve_is_alive_but_not_ready(gateway: Gateway) -> None:
    assert gateway.http.get("/readyz").status_code == 200
    assert gateway.health()["status"] == "ok"
    names = [route["name"] for route in gateway.http.get("/everloop/v1/routes").json()["routes"]]
    assert "tiny" in names
    assert "supervisor-policy" in names


def test_a_compressed_request_body_is_refused_clearly(gateway: Gateway) -> None:
    body = gzip.compress(orjson.dumps({"model": "tiny", "messages": MESSAGES}))
    answer: httpx.Response = gateway.http.post(
        "/v1/chat/completions", content=body, headers={"content-encoding": "gzip"}
    )
    assert answer.status_code == 400
