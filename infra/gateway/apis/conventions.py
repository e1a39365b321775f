"""Conventions of instrumentations: each attribute of a model or tool call, under our name.

Three conventions are read:

- OpenTelemetry's GenAI conventions, whose messages SDKs must write as JSON texts;
- OpenInference (https://github.com/Arize-ai/openinference): `llm.*`, `tool.*`,
  `openinference.span.kind`;
- the older names of OpenLLMetry (`gen_ai.prompt.0.content`).

The attributes that came are kept too.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from schemas.genai import to_semantic
from schemas.spans import Attribute

_JSON_TEXTS = (Attribute.INPUT_MESSAGES, Attribute.OUTPUT_MESSAGES, Attribute.TOOL_DEFINITIONS)
_OPERATIONS = {
    "LLM": "chat",
    "EMBEDDING": "embeddings",
    "TOOL": "execute_tool",
    "AGENT": "invoke_agent",
    "CHAIN": "invoke_workflow",
}
_SAME: tuple[tuple[Attribute, tuple[str, ...]], ...] = (
    (Attribute.PROVIDER, ("gen_ai.system", "llm.provider", "llm.system")),
    (Attribute.REQUEST_MODEL, ("llm.model_name", "embedding.model_name", "llm.request.model")),
    (
        Attribute.INPUT_TOKENS,
        ("gen_ai.usage.prompt_tokens", "llm.token_count.prompt", "llm.usage.prompt_tokens"),
    ),
    (
        Attribute.OUTPUT_TOKENS,
        (
            "gen_ai.usage.completion_tokens",
            "llm.token_count.completion",
            "llm.usage.completion_tokens",
        ),
    ),
    (Attribute.CONVERSATION_ID, ("session.id",)),
    (Attribute.TOOL_NAME, ("tool.name", "traceloop.entity.name")),
    (Attribute.TOOL_ARGUMENTS, ("tool.parameters",)),
    (Attribute.AGENT_NAME, ("agent.name",)),
    (Attribute.NODE, ("graph.node.id", "langgraph.node", "gen_ai.agent.name", "agent.name")),
)
_MESSAGES = {
    Attribute.INPUT_MESSAGES: re.compile(
        r"^(?:llm\.input_messages|gen_ai\.prompt)\.(\d{1,4})\.(?:message\.)?(.+)$"
    ),
    Attribute.OUTPUT_MESSAGES: re.compile(
        r"^(?:llm\.output_messages|gen_ai\.completion)\.(\d{1,4})\.(?:message\.)?(.+)$"
    ),
}
_CALL = re.compile(r"^tool_calls\.(\d{1,4})\.(?:tool_call\.)?(.+)$")
_CONTENT = re.compile(r"^contents\.\d{1,4}\.message_content\.text$")


def span_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a span's attributes with ours added. One of ours that came stays as it is."""
    found = dict(attributes)
    for name in _JSON_TEXTS:
        if isinstance(text := found.get(name), str):
            found[name] = _json_or_text(text)
    kind = found.get("openinference.span.kind") or str(found.get("llm.request.type") or "").upper()
    _add(
        found,
        Attribute.OPERATION,
        _OPERATIONS.get(str(kind)) or ("chat" if kind == "CHAT" else None),
    )
    for name, others in _SAME:
        _add(
            found,
            name,
            next((found[other] for other in others if found.get(other) is not None), None),
        )
    for name, pattern in _MESSAGES.items():
        _add(
            found,
            name,
            [to_semantic(message) for message in _flat_messages(attributes, pattern)] or None,
        )
    if found.get(Attribute.OPERATION) == "execute_tool":
        _add(found, Attribute.TOOL_RESULT, found.get("output.value"))
        _add(found, Attribute.TOOL_ARGUMENTS, found.get("input.value"))
    return found


def _add(found: dict[str, Any], name: Attribute, value: Any) -> None:
    # What the instrumentation wrote itself is surer than what is derived from it.
    if value is not None and found.get(name) is None:
        found[str(name)] = value


def _flat_messages(
    attributes: Mapping[str, Any], pattern: re.Pattern[str]
) -> Iterable[dict[str, Any]]:
    """Return chat messages that were written as one attribute for each member."""
    messages: dict[int, dict[str, Any]] = {}
    calls: dict[int, dict[int, dict[str, Any]]] = {}
    for name, value in attributes.items():
        if (match := pattern.match(name)) is None:
            continue
        index, member = int(match[1]), match[2]
        # Attributes come in any order, so the role may come after the content.
        message = messages.setdefault(index, {"role": "user"})
        if (call := _CALL.match(member)) is not None:
            function = calls.setdefault(index, {}).setdefault(int(call[1]), {})
            function[call[2].removeprefix("function.")] = value
        elif _CONTENT.match(member):
            message["content"] = (message.get("content") or "") + str(value)
        elif member in ("role", "content", "name", "tool_call_id"):
            message[member] = value
    for index, of_message in calls.items():
        messages[index]["tool_calls"] = [
            {
                "id": call.get("id"),
                "function": {"name": call.get("name"), "arguments": call.get("arguments")},
            }
            for _, call in sorted(of_message.items())
        ]
    return [message for _, message in sorted(messages.items())]


def _json_or_text(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
