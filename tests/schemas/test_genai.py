"""Chat messages survive the way to OpenTelemetry's structure and back."""

from typing import Any

import pytest

from schemas.genai import to_openai, to_semantic

CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "search", "arguments": '{"query":"x"}'},
}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi", "name": "junior"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {
            "role": "assistant",
            "content": "thinking",
            "tool_calls": [CALL, {**CALL, "id": "call_2"}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "[]"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
            ],
        },
    ],
)
def test_a_message_is_the_same_after_a_round_trip(message: dict[str, Any]) -> None:
    assert to_openai(to_semantic(message)) == message


def test_parts_are_those_of_the_semantic_conventions() -> None:
    semantic = to_semantic({"role": "assistant", "content": "one moment", "tool_calls": [CALL]})
    assert semantic["parts"] == [
        {"type": "text", "content": "one moment"},
        {"type": "tool_call", "id": "call_1", "name": "search", "arguments": {"query": "x"}},
    ]


def test_arguments_that_are_no_json_stay_as_the_model_wrote_them() -> None:
    broken = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}],
    }
    assert to_openai(to_semantic(broken)) == broken
