"""Tool calls in answers: held against the schemas that the caller sent, and what to tell a model
that broke one.
"""

from typing import Any

import orjson

from learners.json_schema import UncheckableSchemaError, violation

Messages = list[dict[str, Any]]
MARK = "<tool_call>"
"""Where an open model begins a call; in a text it is one that its server could not read."""


class InvalidToolCallError(Exception):
    """An answer calls a tool in a way that the caller's schemas do not allow; the message says
    how.
    """


def call_problems(answers: Messages, tools: Any) -> dict[str, str]:
    """Return what is wrong with the tool calls of an answer.

    Args:
        answers: the assistant's messages, in OpenAI's chat format.
        tools: as the caller sent them; tools without a JSON Schema allow anything.

    Returns:
        Id of the call to what is wrong with it; the id is empty for a call that nobody could read.
    """
    if not isinstance(tools, list) or not tools:
        return {}
    schemas = dict(_functions(tools))
    found = {}
    for message in answers:
        calls = _calls(message)
        for call in calls:
            problem = _problem(call, schemas)
            if problem is not None:
                found[str(call.get("id") or "")] = problem
        content = message.get("content")
        if not calls and isinstance(content, str) and MARK in content:
            found[""] = "a tool call is not written as one"
    return found


def repair_request(
    body: dict[str, Any], answers: Messages, problems: dict[str, str]
) -> dict[str, Any]:
    """Return a chat request that tells the model what was wrong and asks again."""
    said: Messages = []
    for message in answers[:1]:
        calls = _calls(message)
        answer: dict[str, Any] = {"role": "assistant", "content": message.get("content")}
        said.append(answer | ({"tool_calls": calls} if calls else {}))
        for call in calls:
            wrong = problems.get(
                str(call.get("id") or ""), "not carried out, since another call was invalid"
            )
            # Each call needs an answer: model servers refuse a conversation with calls that have
            # none.
            told = f"Invalid call: {wrong}. Try again."
            said.append({"role": "tool", "tool_call_id": call.get("id"), "content": told})
    if "" in problems:
        said.append({"role": "user", "content": f"Invalid call: {problems['']}. Try again."})
    return {**body, "messages": [*body["messages"], *said]}


def _calls(message: dict[str, Any]) -> Messages:
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def _functions(tools: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return each function's name and schema; chat requests nest them, Responses do not."""
    found = []
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            schema = function.get("parameters")
            found.append((function["name"], schema if isinstance(schema, dict) else {}))
    return found


def _problem(call: dict[str, Any], schemas: dict[str, dict[str, Any]]) -> str | None:
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str):
        return "it names no tool"
    if name not in schemas:
        return f"there is no tool {name!r}; there are {', '.join(schemas)}"
    try:
        arguments = orjson.loads(function.get("arguments") or "{}")
    except (orjson.JSONDecodeError, TypeError) as error:
        return f"the arguments of {name} are not JSON: {error}"
    try:
        broken = violation(schemas[name], arguments)
    except UncheckableSchemaError:
        return None  # the caller's schema cannot be checked, so nothing is known to be wrong
    return f"{name}: {broken}" if broken is not None else None
