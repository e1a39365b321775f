"""Graders: named, versioned functions from an answer to a reward, for answers that can be checked.

A grader is deterministic and strict: an answer that it cannot read gets 0. A changed grader gets a
new version, because models trained with two versions cannot be compared.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from learners.json_schema import UncheckableSchemaError, violation
from learners.references import UnknownReferenceError, resolve_plain
from learners.sandbox import run_program

AnswerGrader = Callable[["GradedAnswer"], float]
"""From an answer to a reward in [0, 1]."""

TOOL_CALL = re.compile(
    r"\A\s*(?:<think>(?:(?!</?think>|</?tool_call>).)*</think>)?\s*<tool_call>(.*?)</tool_call>\s*\Z",
    re.S,
)
"""An optional thought, then exactly one call."""

THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.S)

CODE = re.compile(r"^```(?:python|py)?[ \t]*\n(.*?)^```", re.S | re.M)

HARNESS = """
import json, os, sys
task = json.load(sys.stdin)
said = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # the code must not write into the results
space = {"__name__": "answer"}
exec(compile(task["code"], "answer", "exec"), space)
found = []
for args in task["args"]:
    try:
        found.append({"result": space[task["function"]](*args)})
    except Exception as error:
        found.append({"error": repr(error)})
json.dump(found, said)
said.close()
"""
"""Calls the function that an answer defines, and writes the results to standard output."""


class UnknownGraderError(ValueError):
    """No grader has this name and version. The message lists those that exist."""


@dataclass(frozen=True)
class GradedAnswer:
    """An answer for a grader.

    Attributes:
        text: the model's text, with its marks of thoughts and tool calls.
        prompt: in OpenAI's chat format.
        tools: tools that the model could call, in OpenAI's format.
        expected: the label of the task, or a known good answer: a text, or a message of the
            assistant.
    """

    text: str
    prompt: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    expected: Any = None


@dataclass(frozen=True)
class ToolCall:
    """A tool call with decoded arguments."""

    name: str
    arguments: dict[str, Any]


def grader(name: str) -> AnswerGrader:
    """Return a grader by name and version, such as `tool-call@1`, or your function as
    `module:function`.

    Raises:
        UnknownGraderError: no grader has this name.
    """
    if name in GRADERS:
        return GRADERS[name]
    if ":" not in name:
        raise UnknownGraderError(
            f"no grader {name!r}; use one of {', '.join(GRADERS)}, or your own as module:function"
        )
    try:
        grade = resolve_plain(name)
    except UnknownReferenceError as error:
        raise UnknownGraderError(f"cannot load grader {error}") from error
    return lambda answer: check_reward(grade(answer), name)


def check_reward(reward: Any, name: str) -> float:
    """Return the reward as a float.

    Raises:
        ValueError: it is not a number in [0, 1].
    """
    # True is an int in Python, but a grader that returns it means something else.
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not 0.0 <= reward <= 1.0:
        raise ValueError(f"grader {name} returned {reward!r}, which is not a number from 0 to 1")
    return float(reward)


def same_answer(answer: GradedAnswer) -> float:
    """Return 1 if the answer equals the expected text, else 0.

    Thoughts and outer white space do not count.
    """
    expected = (
        answer.expected.get("content") if isinstance(answer.expected, dict) else answer.expected
    )
    said = THOUGHT.sub("", answer.text).strip()
    return float(expected is not None and said == str(expected).strip())


def fits_schema(answer: GradedAnswer) -> float:
    """Return 1 if the answer is JSON that fits `expected`, a JSON Schema, else 0."""
    if not isinstance(answer.expected, dict):
        return 0.0
    try:
        return float(violation(answer.expected, json.loads(THOUGHT.sub("", answer.text))) is None)
    except (json.JSONDecodeError, UncheckableSchemaError, RecursionError):
        return 0.0


def right_tool_call(answer: GradedAnswer) -> float:
    """Return how close a tool call is to the expected one; 1 for no call where none is expected.

    A call that the schema of its tool does not allow gets 0. An allowed call of another tool gets
    0.1. The right tool gets 0.2, plus 0.8 times the share of correct arguments among all arguments
    of either call.
    """
    wanted = _expected_call(answer.expected)
    if wanted is None:
        return float(
            "<tool_call>" not in answer.text
            and "</tool_call>" not in answer.text
            and bool(answer.text.strip())
        )
    called = tool_call(answer.text, answer.tools)
    if called is None:
        return 0.0
    if called.name != wanted.name:
        return 0.1
    names = called.arguments.keys() | wanted.arguments.keys()
    # A fresh object equals nothing else, so an absent argument never equals a null one.
    absent = object()
    right = sum(
        called.arguments.get(name, absent) == wanted.arguments.get(name, absent) for name in names
    )
    return 0.2 + 0.8 * (right / len(names) if names else 1.0)


def tool_call(text: str, tools: list[dict[str, Any]]) -> ToolCall | None:
    """Return the call if the text is exactly one call that its tool's schema allows, else None."""
    found = TOOL_CALL.match(text)
    try:
        document = json.loads(found[1]) if found else None
    except (json.JSONDecodeError, RecursionError):
        return None
    return valid_call(document, tools)


def valid_call(document: Any, tools: list[dict[str, Any]]) -> ToolCall | None:
    """Return a call written as `{"name": …, "arguments": {…}}`; None if no tool allows it."""
    if not isinstance(document, dict) or document.keys() != {"name", "arguments"}:
        return None
    name, arguments = document["name"], document["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    schema = next(
        (t["function"].get("parameters") or {} for t in tools if t["function"]["name"] == name),
        None,
    )
    if schema is None:
        return None
    try:
        return ToolCall(name, arguments) if violation(schema, arguments) is None else None
    except UncheckableSchemaError:
        return None


def _expected_call(expected: Any) -> ToolCall | None:
    """Return the call in a label `{"name", "arguments"}` or in an assistant's message.

    None if no call is expected.
    """
    if not isinstance(expected, dict):
        return None
    if expected.get("tool_calls"):
        function = expected["tool_calls"][0]["function"]
        arguments = function["arguments"]
        return ToolCall(
            function["name"], json.loads(arguments) if isinstance(arguments, str) else arguments
        )
    if "name" in expected and isinstance(expected.get("arguments"), dict):
        return ToolCall(expected["name"], expected["arguments"])
    found = TOOL_CALL.match(str(expected.get("content") or ""))
    document = json.loads(found[1]) if found else {}
    return (
        ToolCall(document["name"], document["arguments"])
        if document.keys() == {"name", "arguments"}
        else None
    )


def passes_tests(answer: GradedAnswer) -> float:
    """Return 1 if the code in the answer passes every case of `expected`, else 0.

    The code is the last fenced block, or the whole answer. A case is `{"stdin", "stdout"}` for a
    program, or `{"args", "result"}` in JSON for the function that `expected["function"]` names. The
    sandbox gets the arguments alone, so the code cannot read the expected results
    (`learners.sandbox`).
    """
    if not isinstance(answer.expected, dict) or not answer.expected.get("cases"):
        return 0.0
    text = THOUGHT.sub("", answer.text)
    # A model that corrects itself writes its final code last.
    blocks = CODE.findall(text)
    code, cases = blocks[-1] if blocks else text, answer.expected["cases"]
    if "function" not in answer.expected:
        # A generator: the first case that fails ends it, and the others are not run.
        programs = ((run_program(code, str(case["stdin"])), str(case["stdout"])) for case in cases)
        return float(
            all(
                one.status == 0 and one.output.rstrip() == wanted.rstrip()
                for one, wanted in programs
            )
        )
    task = {
        "code": code,
        "function": answer.expected["function"],
        "args": [case["args"] for case in cases],
    }
    done = run_program(HARNESS, json.dumps(task))
    try:
        return float(
            done.status == 0
            and json.loads(done.output) == [{"result": case["result"]} for case in cases]
        )
    except (json.JSONDecodeError, RecursionError):
        return 0.0


GRADERS: dict[str, AnswerGrader] = {
    "answer@1": same_answer,
    "schema@1": fits_schema,
    "tool-call@1": right_tool_call,
    "code@1": passes_tests,
}
"""The graders by name and version."""

NEED_LABELS = frozenset(GRADERS)
"""Graders that need an expected answer."""


def register(name: str, grade: AnswerGrader) -> None:
    """Add a grader that is made from settings, such as one that asks a server.

    Args:
        name: with its version, such as `judge@1`.
    """
    GRADERS[name] = lambda answer: check_reward(grade(answer), name)
