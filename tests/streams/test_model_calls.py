"""A model call that several instruments recorded is one call, the fullest that they make
together.
"""

from itertools import pairwise
from typing import Any

import pytest

from schemas.spans import Attribute, Span, SpanEvent
from streams.processors.adapter import AdapterConfig, examples_of
from streams.processors.model_calls import model_calls
from tests import events
from tests.streams.test_adapter import trajectory

CLIENT, HTTP, SOCKET, GATEWAY = ("a" * 16, "b" * 16, "c" * 16, "d" * 16)
TOOLS = [{"type": "function", "function": {"name": "look"}}]
CONFIG = AdapterConfig(rl={"m": frozenset({"refiner"})}, sft={"m": frozenset({"refiner"})})


def call(span_id: str, parent: str | None = None, more: dict[str, Any] | None = None) -> SpanEvent:
    """Return a record of a model call; an attribute that is None is left out."""
    event = events.model_span("r", "refiner", "refined", span_id)
    said = event.payload.attributes | (more or {})
    attributes = {name: value for name, value in said.items() if value is not None}
    changes = {"parent_span_id": parent, "attributes": attributes}
    return event.model_copy(update={"payload": event.payload.model_copy(update=changes)})


def between(span_id: str, parent: str, operation: str | None = None) -> SpanEvent:
    attributes: dict[str, Any] = {} if operation is None else {Attribute.OPERATION: operation}
    span = Span(
        name="POST",
        parent_span_id=parent,
        start_unix_nano=1,
        end_unix_nano=2,
        attributes=attributes,
    )
    return SpanEvent(
        rollout_id="r", time=events.START, trace_id=events.TRACE, span_id=span_id, payload=span
    )


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_call_is_one_at_any_depth_and_the_gateways_record_is_kept(depth: int) -> None:
    path = [CLIENT, HTTP, SOCKET][: depth + 1]
    lying = [between(inner, outer) for outer, inner in pairwise(path)]
    outer = call(CLIENT, None, {Attribute.CHECKPOINT: None})
    gateway = call(GATEWAY, path[-1])
    found = examples_of(trajectory(outer, *lying, gateway, events.reward("r", 0.75)), CONFIG)
    assert [example.source_event_ids[1] for example in found] == [gateway.event_id] * 2
    assert {example.body.head for example in found} == {"sft", "rl"}


def test_what_only_the_agents_record_has_is_taken_over() -> None:
    outer = call(CLIENT, None, {Attribute.TOOL_DEFINITIONS: TOOLS, Attribute.CHECKPOINT: None})
    bare: dict[str, Any] = {Attribute.NODE: None, Attribute.TOOL_DEFINITIONS: []}
    gateway = call(GATEWAY, HTTP, bare)
    (found,) = model_calls([outer, between(HTTP, CLIENT), gateway])
    attributes = found.span.payload.attributes
    assert (attributes[Attribute.TOOL_DEFINITIONS], attributes[Attribute.NODE]) == (
        TOOLS,
        "refiner",
    )
    assert attributes[Attribute.CHECKPOINT] == "v1"
    assert (found.span.event_id, found.span_ids) == (gateway.event_id, (GATEWAY, CLIENT))


def test_what_the_gateway_recorded_is_kept_where_both_say_something() -> None:
    outer = call(CLIENT, None, {Attribute.REQUEST_MODEL: "gpt", Attribute.NODE: "other"})
    gateway = call(GATEWAY, CLIENT, {Attribute.REQUEST_MODEL: "assistant"})
    (found,) = model_calls([outer, gateway])
    assert found.span.payload.text(Attribute.REQUEST_MODEL) == "assistant"
    assert found.span.payload.text(Attribute.NODE) == "refiner"


def test_a_record_without_content_lends_what_it_has() -> None:
    outer = call(CLIENT, None, {Attribute.OUTPUT_MESSAGES: None, Attribute.INPUT_MESSAGES: None})
    (found,) = model_calls([outer, call(GATEWAY, CLIENT, {Attribute.NODE: None})])
    assert found.span.payload.text(Attribute.NODE) == "refiner"


def test_a_record_around_two_calls_is_neither_and_lends_nothing() -> None:
    outer = call(CLIENT, None, {Attribute.TOOL_DEFINITIONS: TOOLS})
    first, second = call(HTTP, CLIENT), call(GATEWAY, CLIENT)
    found = model_calls([outer, first, second])
    assert [one.span for one in found] == [first, second]
    assert [one.span_ids for one in found] == [(HTTP,), (GATEWAY,)]


@pytest.mark.parametrize("operation", ["execute_tool", "invoke_agent"])
def test_the_call_of_a_tool_is_not_the_call_around_the_tool(operation: str) -> None:
    outer, inner = call(CLIENT), call(GATEWAY, HTTP)
    found = model_calls([outer, between(HTTP, CLIENT, operation), inner])
    assert [one.span for one in found] == [outer, inner]


def test_spans_that_enclose_one_another_in_a_circle_end_the_search() -> None:
    inner = call(GATEWAY, HTTP)
    found = model_calls([between(HTTP, SOCKET), between(SOCKET, HTTP), inner])
    assert [one.span for one in found] == [inner]


def test_a_reward_for_the_agents_record_is_the_calls() -> None:
    spans = (call(CLIENT), between(HTTP, CLIENT), call(GATEWAY, HTTP))
    of_span = events.reward("r", 0.25, target_span_id=CLIENT)
    found = examples_of(trajectory(*spans, events.reward("r", 0.75), of_span), CONFIG)
    assert [example.reward for example in found] == [0.25, 0.25]
