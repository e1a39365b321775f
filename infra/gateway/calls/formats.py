"""The OpenAI APIs that the gateway passes on: what it reads of a request and of an answer.

Spec: https://platform.openai.com/docs/api-reference. A field that is not named here is passed on
unchanged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.gateway.calls.answers import Answer, ChoicesAnswer, EmbeddingsAnswer, ResponsesAnswer

Messages = list[dict[str, Any]]


class ApiRequest(BaseModel):
    """What the gateway reads of every request."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1)
    stream: bool | None = None


class ChatRequest(ApiRequest):
    """A chat completion request."""

    messages: Messages = Field(min_length=1)


class CompletionRequest(ApiRequest):
    """A text completion request: texts, or token ids."""

    prompt: str | list[str] | list[int] | list[list[int]]


class ResponsesRequest(ApiRequest):
    """A Responses request: a text, or items."""

    input: str | Messages | None = None
    previous_response_id: str | None = None


class EmbeddingsRequest(ApiRequest):
    """An embeddings request: texts, or token ids."""

    input: str | list[str] | list[int] | list[list[int]]


@dataclass(frozen=True)
class Api:
    """One of the APIs.

    Attributes:
        name: `openai.api.type` of its spans.
        operation: `gen_ai.operation.name` of its spans.
        path: path below the base URL.
        messages: returns a request's messages in OpenAI's chat format; None if it has none.
        instruct: returns a request with instructions before its own; the same request if the API
            has no place for them.
    """

    name: str
    operation: str
    path: str
    request: type[ApiRequest]
    answer: type[Answer]
    messages: Callable[[dict[str, Any]], Messages | None]
    instruct: Callable[[dict[str, Any], str], dict[str, Any]]

    def __reduce__(self) -> tuple[Callable[[str], "Api"], tuple[str]]:
        """Pickle it by its name: a process that reads large requests has the same APIs."""
        return _api_of, (self.name,)


def _prompts(body: dict[str, Any]) -> Messages | None:
    prompt = body["prompt"]
    texts = [prompt] if isinstance(prompt, str) else prompt
    return [{"role": "user", "content": text} for text in texts if isinstance(text, str)]


def _items(body: dict[str, Any]) -> Messages | None:
    """Return the items of a Responses request as chat messages."""
    messages: Messages = []
    if isinstance(body.get("instructions"), str):
        messages.append({"role": "system", "content": body["instructions"]})
    given = body.get("input")
    for item in [{"role": "user", "content": given}] if isinstance(given, str) else given or ():
        kind = item.get("type", "message")
        if kind == "message":
            messages.append(
                {"role": item.get("role", "user"), "content": _content(item.get("content"))}
            )
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            messages.append(
                {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
            )
    return messages


def _content(content: Any) -> Any:
    """Return the content of an item as in a chat message: one string if all its parts are text."""
    if not isinstance(content, list):
        return content
    parts = [
        part
        for part in content
        if isinstance(part, dict) and str(part.get("type")).endswith("_text")
    ]
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
    return "".join(texts) if len(texts) == len(content) else content


def _instruct_chat(body: dict[str, Any], text: str) -> dict[str, Any]:
    return {**body, "messages": [{"role": "system", "content": text}, *body["messages"]]}


def _instruct_completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    prompt = body["prompt"]
    if isinstance(prompt, str):
        return {**body, "prompt": f"{text}\n\n{prompt}"}
    return {
        **body,
        "prompt": [f"{text}\n\n{one}" if isinstance(one, str) else one for one in prompt],
    }


def _instruct_response(body: dict[str, Any], text: str) -> dict[str, Any]:
    own = body.get("instructions")
    return {**body, "instructions": f"{text}\n\n{own}" if isinstance(own, str) else text}


CHAT = Api(
    "chat_completions",
    "chat",
    "/chat/completions",
    ChatRequest,
    ChoicesAnswer,
    lambda body: body["messages"],
    _instruct_chat,
)
COMPLETIONS = Api(
    "completions",
    "text_completion",
    "/completions",
    CompletionRequest,
    ChoicesAnswer,
    _prompts,
    _instruct_completion,
)
RESPONSES = Api(
    "responses",
    "chat",
    "/responses",
    ResponsesRequest,
    ResponsesAnswer,
    _items,
    _instruct_response,
)
EMBEDDINGS = Api(
    "embeddings",
    "embeddings",
    "/embeddings",
    EmbeddingsRequest,
    EmbeddingsAnswer,
    lambda _: None,
    lambda body, _: body,
)

APIS = (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS)
_BY_NAME = {api.name: api for api in APIS}


def _api_of(name: str) -> Api:
    return _BY_NAME[name]
