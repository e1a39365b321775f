"""What is true of a small call is true of a large one, which reader processes read."""

from typing import Any

import pytest

from infra.config.settings import Settings
from infra.gateway.http.threads import LARGE_BYTES
from schemas.decisions import DecisionEvent
from schemas.routes import Choice, Option, Route, RouteTarget
from schemas.spans import Attribute, SpanEvent
from schemas.topics import DECISIONS, SPANS
from streams.processors.promotion_state import baseline_route
from tests.infra.conftest import Gateway, metrics_of, model_route, publish, running_gateway
from tests.infra.upstream import Upstream
from tests.waiting import eventually

TEXT = "word " * (LARGE_BYTES // 5)
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": TEXT}]
SCHEMA = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
TOOLS = [{"type": "function", "function": {"name": "search", "parameters": SCHEMA}}]


def invalid_calls(gateway: Gateway) -> float:
    text = gateway.http.get("/metrics").text
    return sum(n for _, n in metrics_of(text, "everloop_invalid_tool_calls_total"))


def test_a_tool_call_is_repaired(settings: Settings, upstream: Upstream, upstream_url: str) -> None:
    repairing = settings.gateway.model_copy(update={"tool_calls": "repair"})
    publish(settings.log_path, model_route("clumsy", upstream_url))
    with running_gateway(settings.model_copy(update={"gateway": repairing})) as gateway:
        answer = gateway.chat("clumsy", messages=MESSAGES, tools=TOOLS)
        call = answer.json()["choices"][0]["message"]["tool_calls"][0]
        assert call["function"]["arguments"] == '{"query": "x"}'
        spans = gateway.soon(SPANS, SpanEvent, 2)
        first, second = sorted(spans, key=lambda span: span.payload.start_unix_nano)
        assert (first.payload.status, second.payload.status) == ("error", "ok")
        assert invalid_calls(gateway) == 1.0
    told = upstream.asked[1]["messages"]
    assert [message["role"] for message in told] == ["user", "assistant", "tool"]
    assert told[0] == MESSAGES[0]


def test_the_invalid_tool_calls_of_a_stream_are_counted(gateway: Gateway) -> None:
    others = [{"type": "function", "function": {"name": "another", "parameters": SCHEMA}}]
    assert gateway.chat(messages=MESSAGES, tools=others, stream=True).is_success
    eventually(lambda: invalid_calls(gateway) == 1.0, "the call is counted")
    (span,) = gateway.soon(SPANS, SpanEvent)
    assert span.payload.attributes[Attribute.INVALID_TOOL_CALLS] == 1
    assert span.payload.attributes[Attribute.STREAMED]


def test_a_policy_chooses_by_how_it_begins_and_the_option_instructs_it(
    settings: Settings, upstream: Upstream, upstream_url: str
) -> None:
    option = Option(name="terse", model="plain", instructions="Answer in one word.")
    choice = Choice(policy="router-policy", options=[option])
    targets = [RouteTarget(version="v1")]
    routes = [
        model_route("plain", upstream_url),
        baseline_route("router-policy"),
        Route(name="assistant", kind="choice", targets=targets, choice=choice),
    ]
    publish(settings.log_path, *routes)
    with running_gateway(settings) as gateway:
        assert gateway.chat("assistant", messages=MESSAGES).is_success
        (decision,) = gateway.soon(DECISIONS, DecisionEvent)
        (span,) = gateway.soon(SPANS, SpanEvent)
    assert decision.payload.context == TEXT[:4000]
    (asked,) = upstream.asked
    assert asked["model"] == "plain"
    assert asked["messages"] == [{"role": "system", "content": option.instructions}, *MESSAGES]
    assert span.payload.attributes[Attribute.REQUEST_MODEL] == "plain"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"model": "tiny", "messages": "' + TEXT.encode() + b'"}', "messages"),
        (b'{"model": "tiny", "text": "' + TEXT.encode(), "not JSON"),
        (b'["' + TEXT.encode() + b'"]', "must be a JSON object"),
    ],
)
def test_what_does_not_fit_is_refused(gateway: Gateway, body: bytes, says: str) -> None:
    answer = gateway.http.post("/v1/chat/completions", content=body)
    assert (answer.status_code, says in answer.json()["detail"]) == (400, True)


def test_personal_data_is_taken_out_of_its_span(
    settings: Settings, upstream: Upstream, upstream_url: str
) -> None:
    redaction = settings.gateway.redaction.model_copy(update={"builtin": ("email",)})
    redacting = settings.gateway.model_copy(update={"redaction": redaction})
    publish(settings.log_path, model_route("tiny", upstream_url))
    said = f"{TEXT} ann@example.com"
    with running_gateway(settings.model_copy(update={"gateway": redacting})) as gateway:
        gateway.chat(messages=[{"role": "user", "content": said}])
        (span,) = gateway.soon(SPANS, SpanEvent)
    recorded = str(span.payload.attributes[Attribute.INPUT_MESSAGES])
    assert ("ann@example.com" in recorded, "[EMAIL]" in recorded) == (False, True)
    assert upstream.asked[0]["messages"][0]["content"] == said
