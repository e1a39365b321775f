"""Spans from any OpenTelemetry SDK, as protobuf or JSON, compressed or not, come onto the log."""

import gzip
from typing import Any

import orjson
import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import StatusCode

from infra.gateway.http.documents import is_large
from schemas.rollouts import Recorded, RolloutEvent, RolloutState
from schemas.spans import Attribute, SpanEvent
from schemas.topics import ROLLOUTS, SPANS
from tests.infra.conftest import Gateway

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_the_sdks_own_exporter_is_understood(gateway: Gateway, compression: Compression) -> None:
    provider = TracerProvider(
        resource=Resource({Attribute.ROLLOUT_ID.value: "r1"}), shutdown_on_exit=False
    )
    exporter = OTLPSpanExporter(f"{gateway.url}/v1/traces", compression=compression)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("outer") as outer:
        outer.set_attributes({"list": ["a", "b"], "whole": 3, "real": 0.5, "flag": True})
        with tracer.start_as_current_span("inner") as inner:
            inner.set_status(StatusCode.ERROR, "it broke")
    provider.shutdown()
    inner_event, outer_event = gateway.soon(SPANS, SpanEvent, 2)
    assert inner_event.payload.parent_span_id == outer_event.span_id
    assert inner_event.trace_id == outer_event.trace_id
    assert (inner_event.payload.status, inner_event.payload.status_message) == ("error", "it broke")
    said = outer_event.payload.attributes
    assert (said["list"], said["whole"], said["real"], said["flag"]) == (["a", "b"], 3, 0.5, True)
    assert outer_event.rollout_id == "r1"


def exported(spans: list[dict[str, Any]]) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": spans}]}]}


def span(**more: Any) -> dict[str, Any]:
    rollout = {"key": Attribute.ROLLOUT_ID.value, "value": {"stringValue": "r1"}}
    times = {"startTimeUnixNano": "1", "endTimeUnixNano": "2"}
    return {
        "traceId": TRACE,
        "spanId": SPAN,
        "name": "work",
        "kind": 3,
        "attributes": [rollout],
        **times,
        **more,
    }


def test_json_is_understood_and_answered_in_json(gateway: Gateway) -> None:
    nested = {
        "kvlistValue": {
            "values": [{"key": "a", "value": {"arrayValue": {"values": [{"intValue": "1"}]}}}]
        }
    }
    attributes = [
        *span()["attributes"],
        {"key": "nested", "value": nested},
        {"key": "raw", "value": {}},
    ]
    answer = gateway.http.post("/v1/traces", json=exported([span(attributes=attributes)]))
    assert answer.json() == {}
    (event,) = gateway.soon(SPANS, SpanEvent)
    assert (event.trace_id, event.span_id, event.payload.kind) == (TRACE, SPAN, "client")
    assert event.payload.attributes["nested"] == {"a": [1]}


def test_spans_that_cannot_be_used_are_counted_and_the_others_kept(gateway: Gateway) -> None:
    spans = [span(), span(spanId="00"), span(endTimeUnixNano="0")]
    answer = gateway.http.post("/v1/traces", json=exported(spans)).json()["partialSuccess"]
    assert answer["rejectedSpans"] == 2
    assert "span_id" in answer["errorMessage"]
    assert len(gateway.soon(SPANS, SpanEvent)) == 1


def test_a_span_that_names_no_rollout_is_of_its_traces_which_ends_when_it_is_silent(
    gateway: Gateway,
) -> None:
    gateway.http.post(
        "/v1/traces", json=exported([span(attributes=[]), span(attributes=[], spanId="b" * 16)])
    )
    called = gateway.chat(headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
    assert called.headers["x-everloop-rollout-id"] == TRACE
    assert {event.rollout_id for event in gateway.soon(SPANS, SpanEvent, 3)} == {TRACE}
    began, assigned, ended = gateway.soon(ROLLOUTS, RolloutEvent, 3)
    assert assigned.payload.assigned == {"tiny": "v1"}
    assert (began.payload.state, ended.payload.state) == (
        RolloutState.STARTED,
        RolloutState.SUCCEEDED,
    )
    assert ended.payload.recorded == Recorded(spans=3)


def attribute(name: str, value: Any) -> dict[str, Any]:
    kind = {str: "stringValue", int: "intValue"}[type(value)]
    return {"key": name, "value": {kind: str(value)}}


OPENINFERENCE = {
    "openinference.span.kind": "LLM",
    "llm.model_name": "m",
    "llm.token_count.prompt": 7,
    "llm.token_count.completion": 2,
    "llm.input_messages.0.message.role": "user",
    "llm.input_messages.0.message.content": "hi",
    "llm.output_messages.0.message.role": "assistant",
    "llm.output_messages.0.message.content": "hello",
    "llm.output_messages.0.message.tool_calls.0.tool_call.id": "call_1",
    "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "search",
    "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"query": "x"}',
    "graph.node.id": "writer",
}
OPENLLMETRY = {
    "llm.request.type": "chat",
    "gen_ai.request.model": "m",
    "gen_ai.usage.prompt_tokens": 7,
    "gen_ai.usage.completion_tokens": 2,
    "gen_ai.prompt.0.role": "user",
    "gen_ai.prompt.0.content": "hi",
    "gen_ai.completion.0.role": "assistant",
    "gen_ai.completion.0.content": "hello",
    "gen_ai.completion.0.tool_calls.0.id": "call_1",
    "gen_ai.completion.0.tool_calls.0.name": "search",
    "gen_ai.completion.0.tool_calls.0.arguments": '{"query": "x"}',
    "langgraph.node": "writer",
}
GENAI = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "m",
    "gen_ai.usage.input_tokens": 7,
    "gen_ai.usage.output_tokens": 2,
    "gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]',
    "gen_ai.output.messages": '[{"role": "assistant", "parts":'
    ' [{"type": "text", "content": "hello"}, {"type":'
    ' "tool_call", "id": "call_1", "name": "search", "arguments": {"query": "x"}}]}]',
    "gen_ai.agent.name": "writer",
}


@pytest.mark.parametrize(
    "said", [OPENINFERENCE, OPENLLMETRY, GENAI], ids=["openinference", "openllmetry", "genai"]
)
def test_model_calls_are_understood_under_every_name(
    gateway: Gateway, said: dict[str, Any]
) -> None:
    attributes = [attribute(name, value) for name, value in said.items()]
    assert (
        gateway.http.post("/v1/traces", json=exported([span(attributes=attributes)])).json() == {}
    )
    (event,) = gateway.soon(SPANS, SpanEvent)
    found = event.payload.attributes
    assert said.items() <= found.items() or said is GENAI
    assert (found[Attribute.OPERATION], found[Attribute.REQUEST_MODEL]) == ("chat", "m")
    assert (found[Attribute.INPUT_TOKENS], found[Attribute.OUTPUT_TOKENS]) == (7, 2)
    assert found[Attribute.NODE] == "writer"
    assert found[Attribute.INPUT_MESSAGES] == [
        {"role": "user", "parts": [{"type": "text", "content": "hi"}]}
    ]
    call = {"type": "tool_call", "id": "call_1", "name": "search", "arguments": {"query": "x"}}
    assert found[Attribute.OUTPUT_MESSAGES] == [
        {"role": "assistant", "parts": [{"type": "text", "content": "hello"}, call]}
    ]


def test_a_tool_of_openinference_is_a_tool_call(gateway: Gateway) -> None:
    said = {
        "openinference.span.kind": "TOOL",
        "tool.name": "search",
        "input.value": "x",
        "output.value": "found",
    }
    attributes = [attribute(name, value) for name, value in said.items()]
    gateway.http.post("/v1/traces", json=exported([span(attributes=attributes)]))
    found = gateway.soon(SPANS, SpanEvent)[0].payload.attributes
    assert (found[Attribute.OPERATION], found[Attribute.TOOL_NAME]) == ("execute_tool", "search")
    assert (found[Attribute.TOOL_ARGUMENTS], found[Attribute.TOOL_RESULT]) == ("x", "found")


@pytest.mark.parametrize("packed", [False, True])
def test_of_a_large_export_each_good_span_is_recorded_and_the_others_are_counted(
    gateway: Gateway, packed: bool
) -> None:
    spans = [span(spanId=f"{number:016x}") for number in range(1, 251)]
    bad = [span(endTimeUnixNano="0") for _ in range(3)]
    content = orjson.dumps(exported([*spans[:120], *bad, *spans[120:]]))
    assert is_large(content)
    headers = {"content-type": "application/json"}
    if packed:
        content, headers = gzip.compress(content), headers | {"content-encoding": "gzip"}
    answer = gateway.http.post("/v1/traces", content=content, headers=headers).json()
    assert answer["partialSuccess"]["rejectedSpans"] == 3
    assert "ends before it starts" in answer["partialSuccess"]["errorMessage"]
    found = gateway.soon(SPANS, SpanEvent, 250)
    assert [event.span_id for event in found] == [one["spanId"] for one in spans]
    assert {event.rollout_id for event in found} == {"r1"}


def test_protobuf_is_answered_in_protobuf(gateway: Gateway) -> None:
    answer = gateway.http.post(
        "/v1/traces", content=b"", headers={"content-type": "application/x-protobuf"}
    )
    assert answer.headers["content-type"] == "application/x-protobuf"
    assert ExportTraceServiceResponse.FromString(answer.content).partial_success.rejected_spans == 0


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"\xff\xff", {"content-type": "application/x-protobuf"}, 400),
        (b"{", {"content-type": "application/json"}, 400),
        (b'{"resourceSpans": 3}', {"content-type": "application/json"}, 400),
        (
            b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]}',
            {"content-type": "application/json"},
            400,
        ),
        (b"no gzip", {"content-type": "application/x-protobuf", "content-encoding": "gzip"}, 400),
        (
            gzip.compress(b"\0" * 200_000),
            {"content-type": "application/x-protobuf", "content-encoding": "gzip"},
            413,
        ),
    ],
)
def test_a_body_that_is_no_export_is_refused(
    gateway: Gateway, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = gateway.http.post("/v1/traces", content=body, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
