"""Graders pay for what is right, and nothing for what only looks it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.graders import GRADERS, GradedAnswer, UnknownGraderError, grader, tool_call

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "seats": {"type": "integer", "minimum": 1}},
    "required": ["city", "seats"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "book", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "cancel", "parameters": SCHEMA}},
]
WANTED = {"name": "book", "arguments": {"city": "oslo", "seats": 3}}


def call(document: Any, thought: str = "") -> str:
    return f"{thought}<tool_call>{json.dumps(document)}</tool_call>"


def graded(text: str, expected: Any = WANTED) -> float:
    return grader("tool-call@1")(GradedAnswer(text, tools=TOOLS, expected=expected))


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (call(WANTED), 1.0),
        (call(WANTED, "<think>three of them</think>\n"), 1.0),
        (call(WANTED | {"arguments": {"city": "oslo", "seats": 4}}), 0.6),
        (call(WANTED | {"name": "cancel"}), 0.1),
        (call(WANTED | {"arguments": {"city": "rome", "seats": 4}}), 0.2),
    ],
)
def test_a_call_earns_by_how_right_it_is(text: str, reward: float) -> None:
    assert graded(text) == pytest.approx(reward)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I would call book with oslo and 3.",
        json.dumps(WANTED),  # no marks
        call(WANTED) + call(WANTED),
        call(WANTED) + " and then some",
        "<tool_call></tool_call>",
        "<tool_call>{</tool_call>",
        call(WANTED | {"name": ""}),
        call(WANTED | {"name": None}),
        call(WANTED | {"arguments": json.dumps(WANTED["arguments"])}),
        call(WANTED | {"arguments": {"city": "oslo", "seats": "3"}}),
        call(WANTED | {"arguments": {"city": "oslo", "seats": 0}}),
        call(WANTED | {"arguments": {"city": "oslo", "seats": 3, "why": "because"}}),
        call({"call": WANTED}),
        call([WANTED]),
        call(WANTED | {"name": "delete"}),
        call(WANTED | {"reward": 1.0}),
        f"<tool_call><tool_call>{json.dumps(WANTED)}</tool_call></tool_call>",
        f"<think><tool_call>{json.dumps(WANTED)}</tool_call></think>",
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
    ],
)
def test_what_only_looks_like_a_call_earns_nothing(text: str) -> None:
    assert graded(text) == 0.0


def test_where_no_call_is_wanted_any_call_is_wrong_and_silence_too() -> None:
    assert graded("it is only imagined", expected=None) == 1.0
    assert graded("", expected=None) == 0.0
    assert graded(call(WANTED), expected=None) == 0.0
    assert graded("</tool_call> fooled", expected=None) == 0.0


def test_the_expected_call_may_be_a_label_or_a_message() -> None:
    function = {"name": "book", "arguments": json.dumps(WANTED["arguments"])}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": function}],
    }
    assert graded(call(WANTED), expected=message) == 1.0
    assert graded(call(WANTED), expected={"role": "assistant", "content": call(WANTED)}) == 1.0
    assert graded(call(WANTED), expected={"role": "assistant", "content": "none"}) == 0.0


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_no_call_that_the_schema_forbids_is_ever_read(document: Any) -> None:
    found = tool_call(call(document), TOOLS)
    assert found is None or (
        found.name in ("book", "cancel") and found.arguments.keys() == {"city", "seats"}
    )


def test_answers_and_schemas() -> None:
    assert grader("answer@1")(GradedAnswer("<think>hm</think> yes ", expected="yes")) == 1.0
    assert (
        grader("answer@1")(GradedAnswer("yes", expected={"role": "assistant", "content": "yes"}))
        == 1.0
    )
    assert grader("answer@1")(GradedAnswer("yes and no", expected="yes")) == 0.0
    assert grader("answer@1")(GradedAnswer("None", expected=None)) == 0.0
    assert grader("schema@1")(GradedAnswer('{"city": "oslo", "seats": 1}', expected=SCHEMA)) == 1.0
    assert grader("schema@1")(GradedAnswer('{"city": "oslo"}', expected=SCHEMA)) == 0.0
    assert grader("schema@1")(GradedAnswer("oslo", expected=SCHEMA)) == 0.0


def test_graders_of_ones_own_and_those_that_are_not_there() -> None:
    assert grader("tests.learners.test_graders:half")(GradedAnswer("anything")) == 0.5
    with pytest.raises(UnknownGraderError, match="tool-call@1"):
        grader("oracle@9")
    with pytest.raises(UnknownGraderError, match="nowhere"):
        grader("nowhere:half")
    with pytest.raises(ValueError, match="not a number from 0 to 1"):
        grader("tests.learners.test_graders:generous")(GradedAnswer("anything"))
    assert set(GRADERS) == {"answer@1", "schema@1", "tool-call@1", "code@1"}


def half(_: GradedAnswer) -> float:
    return 0.5


def generous(_: GradedAnswer) -> float:
    return 10.0
