"""Tool calls that the caller's schemas do not allow are counted, and repaired or refused where that
is wanted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from infra.config.settings import Settings
from infra.gateway.calls.tool_calls import call_problems
from learners.json_schema import UncheckableSchemaError, violation
from schemas.rollouts import RolloutEvent
from schemas.spans import Attribute, SpanEvent
from schemas.topics import ROLLOUTS, SPANS
from tests.infra.conftest import Gateway, metrics_of, model_route, publish, running_gateway
from tests.infra.upstream import Upstream

SCHEMA = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
TOOLS = [{"type": "function", "function": {"name": "search", "parameters": SCHEMA}}]


@contextmanager
def gateway_that(does: str, settings: Settings, url: str) -> Iterator[Gateway]:
    gateway = settings.gateway.model_copy(update={"tool_calls": does})
    publish(settings.log_path, *(model_route(name, url) for name in ("tiny", "clumsy", "hopeless")))
    with running_gateway(settings.model_copy(update={"gateway": gateway})) as running:
        yield running


def invalid(gateway: Gateway) -> list[tuple[dict[str, str], float]]:
    return metrics_of(gateway.http.get("/metrics").text, "everloop_invalid_tool_calls_total")


def test_by_default_they_pass_and_are_counted(settings: Settings, upstream_url: str) -> None:
    with gateway_that("pass", settings, upstream_url) as gateway:
        assert gateway.chat("clumsy", tools=TOOLS).json()["choices"][0]["message"]["tool_calls"]
        assert gateway.chat("tiny", tools=TOOLS).is_success
        first, second = gateway.soon(SPANS, SpanEvent, 2)
        assert (first.payload.attributes[Attribute.INVALID_TOOL_CALLS], first.payload.status) == (
            1,
            "ok",
        )
        assert Attribute.INVALID_TOOL_CALLS not in second.payload.attributes
        assert invalid(gateway) == [({"model": "clumsy", "version": "v1"}, 1.0)]


def test_the_model_is_told_and_asked_once_more(
    settings: Settings, upstream: Upstream, upstream_url: str
) -> None:
    with gateway_that("repair", settings, upstream_url) as gateway:
        answer = gateway.chat("clumsy", tools=TOOLS)
        assert (
            answer.json()["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
            == '{"query": "x"}'
        )
        first, second = gateway.soon(SPANS, SpanEvent, 2)
    assert answer.headers["x-everloop-span-id"] == second.span_id != first.span_id
    assert (first.payload.status, second.payload.status) == ("error", "ok"), (
        "what was wrong teaches nobody"
    )
    assert (
        first.payload.status_message
        == "invalid tool call: search: $: 'query' is a required property"
    )
    assert first.rollout_id == second.rollout_id
    *_, assistant, told = upstream.asked[1]["messages"]
    assert assistant["tool_calls"][0]["id"] == told["tool_call_id"] == "call_1"
    assert told["content"] == "Invalid call: search: $: 'query' is a required property. Try again."


@pytest.mark.parametrize(("does", "asked"), [("repair", 2), ("reject", 1)])
def test_what_stays_invalid_is_refused(
    does: str, asked: int, settings: Settings, upstream: Upstream, upstream_url: str
) -> None:
    with gateway_that(does, settings, upstream_url) as gateway:
        answer = gateway.chat("hopeless", tools=TOOLS)
        assert (answer.status_code, answer.json()["title"]) == (502, "Invalid tool call")
        assert "'query' is a required property" in answer.json()["detail"]
        assert [span.payload.status for span in gateway.soon(SPANS, SpanEvent, asked)] == [
            "error"
        ] * asked
        assert invalid(gateway) == [({"model": "hopeless", "version": "v1"}, float(asked))]
    assert len(upstream.asked) == asked


def called(name: Any, arguments: Any) -> list[dict[str, Any]]:
    return [
        {
            "content": None,
            "tool_calls": [{"id": "c", "function": {"name": name, "arguments": arguments}}],
        }
    ]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (called("search", '{"query": "x"}'), None),
        (called("search", '{"query": 3}'), "search: $.query: 3 is not of type 'string'"),
        (called("search", "{"), "the arguments of search are not JSON"),
        (called("fly", "{}"), "there is no tool 'fly'; there are search"),
        (called(["fly"], "{}"), "it names no tool"),
        ([{"content": None, "tool_calls": ["x"]}], None),
        ([{"content": "<tool_call>{</tool_call>"}], "a tool call is not written as one"),
        ([{"content": "no call"}], None),
    ],
)
def test_what_is_wrong_is_said(answers: list[dict[str, Any]], said: str | None) -> None:
    problems = call_problems(answers, TOOLS)
    assert list(problems) == ([] if said is None else [next(iter(problems))])
    assert said is None or said in next(iter(problems.values()))


def test_tools_of_the_responses_api_are_flat_and_a_schema_that_is_none_forbids_nothing() -> None:
    flat = [{"type": "function", "name": "search", "parameters": SCHEMA}, {"type": "web_search"}]
    assert list(call_problems(called("search", "{}"), flat)) == ["c"]
    for schema in ({"type": 7}, {"$ref": "http://127.0.0.1:9/schema.json"}, None):
        tools = [{"type": "function", "function": {"name": "search", "parameters": schema}}]
        assert call_problems(called("search", "{}"), tools) == {}


def test_nothing_that_a_schema_refers_to_is_fetched() -> None:
    with pytest.raises(UncheckableSchemaError, match="cannot be checked against"):
        violation({"$ref": "http://127.0.0.1:9/schema.json"}, 3)
    assert (
        violation({"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"}, "x")
        == "$: 'x' is not of type 'integer'"
    )


def test_a_conversation_whose_tool_call_was_repaired_ends(
    settings: Settings, upstream_url: str
) -> None:
    with gateway_that("repair", settings, upstream_url) as gateway:
        rollout_id = gateway.chat("clumsy", tools=TOOLS).headers["x-everloop-rollout-id"]
        _, ended = gateway.soon(ROLLOUTS, RolloutEvent, 2)
        assert (ended.rollout_id, ended.payload.state) == (rollout_id, "succeeded")
