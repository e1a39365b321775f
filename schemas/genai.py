"""Conversion between OpenAI chat messages and messages of OpenTelemetry's GenAI conventions.

Spec: https://opentelemetry.io/docs/specs/semconv/gen-ai/ (JSON schemas of input and output
messages). A message is `{"role": …, "parts": […]}` with parts of type `text`, `tool_call` and
`tool_call_response`. Content without a part type of its own (images, audio) is kept whole in a part
`{"type": "openai", "content": …}`, so the way back loses nothing.
"""

from typing import Any

import orjson


def to_semantic(message: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAI chat message as a semantic-convention message."""
    role = str(message.get("role", "assistant"))
    if role == "tool":
        response = {
            "type": "tool_call_response",
            "id": message.get("tool_call_id"),
            "response": message.get("content"),
        }
        return {"role": role, "parts": [response]}
    parts: list[dict[str, Any]] = []
    content = message.get("content")
    if isinstance(content, str) and content:
        parts.append({"type": "text", "content": content})
    # A list of parts: text beside images or audio.
    elif isinstance(content, list):
        parts.extend(_content_part(item) for item in content)
    for call in _objects(message.get("tool_calls")):
        called = call.get("function")
        function: dict[str, Any] = called if isinstance(called, dict) else {}
        parts.append(
            {
                "type": "tool_call",
                "id": call.get("id"),
                "name": function.get("name"),
                "arguments": _parse_arguments(function.get("arguments")),
            }
        )
    semantic = {"role": role, "parts": parts}
    if name := message.get("name"):
        semantic["name"] = name
    return semantic


def to_openai(message: dict[str, Any]) -> dict[str, Any]:
    """Return a semantic-convention message as an OpenAI chat message; inverse of `to_semantic`."""
    role, parts = message["role"], message.get("parts", [])
    for part in parts:
        if part["type"] == "tool_call_response":
            return {"role": "tool", "tool_call_id": part.get("id"), "content": part.get("response")}
    texts = [part["content"] for part in parts if part["type"] == "text"]
    others = [part["content"] for part in parts if part["type"] == "openai"]
    converted: dict[str, Any] = {"role": role}
    if others:
        # Images and audio need the list form; plain text keeps the short one.
        converted["content"] = [{"type": "text", "text": text} for text in texts] + others
    else:
        # OpenAI writes null where an answer has only tool calls.
        converted["content"] = "\n".join(texts) if texts else None
    calls = [
        {
            "id": part.get("id"),
            "type": "function",
            "function": {
                "name": part.get("name"),
                "arguments": _arguments_text(part.get("arguments")),
            },
        }
        for part in parts
        if part["type"] == "tool_call"
    ]
    if calls:
        converted["tool_calls"] = calls
    if name := message.get("name"):
        converted["name"] = name
    return converted


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _content_part(item: Any) -> dict[str, Any]:
    if isinstance(item, dict) and item.get("type") == "text":
        return {"type": "text", "content": item.get("text", "")}
    return {"type": "openai", "content": item}


def _parse_arguments(arguments: Any) -> Any:
    """Return tool arguments as JSON where the model wrote valid JSON, else the text it wrote."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return arguments


def _arguments_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
