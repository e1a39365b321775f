"""Answers of model servers, read while they pass: one JSON body, or the events of a stream.

There is one class for each of OpenAI's APIs. No answer is trusted. If an answer does not have the
expected form, the class notes the damage, and the gateway passes the answer on unchanged.
"""

from abc import ABC, abstractmethod
from typing import Any

import orjson

# A stream's line is kept until its end has come. A server that never ends it must not fill memory.
MOST_PENDING_BYTES = 16 * 1024 * 1024
MOST_PARTS = 1024
"""Most choices, tool calls or output items of an answer. A higher index counts as damage, because a
list of that length would take memory.
"""


class Answer(ABC):
    """An answer, as far as its span needs it.

    Attributes:
        messages: the assistant's messages in OpenAI's chat format.
        damaged: what could not be read; None if everything could.
        ended: whether the answer is complete.
        input_tokens, output_tokens: as the server counted them; None if it did not say.
    """

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self.ended = False
        self.damaged: str | None = None
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self._rest = b""

    def read_body(self, body: bytes) -> None:
        """Read the whole answer to a request without streaming."""
        document = self._object(body)
        if document is not None:
            self.ended = True
            self._take_guarded(self._take_document, document)

    def read_chunk(self, chunk: bytes) -> None:
        """Read a piece of an event stream. It may end in the middle of an event."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._read_event(line[5:].strip())
        if len(self._rest) > MOST_PENDING_BYTES:
            self.damaged = (
                f"the model server's stream has a line of more than {MOST_PENDING_BYTES} bytes"
            )
            self._rest = b""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The assistant's messages; empty for an API without messages."""
        return []

    @property
    def finish_reasons(self) -> list[str]:
        """Why each choice ended."""
        return []

    @property
    def prompt_token_ids(self) -> list[int]:
        """Token ids of the prompt (vLLM's `return_token_ids`); empty if the server gives none."""
        return []

    @property
    def response_token_ids(self) -> list[int]:
        """Token ids of the first choice; empty if the server gives none."""
        return []

    @property
    def response_logprobs(self) -> list[float]:
        """Natural logarithms of the probabilities of the first choice's tokens; may be empty."""
        return []

    @property
    def document(self) -> dict[str, Any]:
        """The answer as one body; a stream's events are put together."""
        return {}

    @abstractmethod
    def _take_document(self, document: dict[str, Any]) -> None:
        """Read a body."""

    @abstractmethod
    def _take_event(self, document: dict[str, Any]) -> None:
        """Read an event of a stream."""

    def _take_common(self, document: dict[str, Any]) -> None:
        self.id = _text(document.get("id")) or self.id
        self.model = _text(document.get("model")) or self.model
        usage = document.get("usage")
        if isinstance(usage, dict):
            self.input_tokens = _count(usage, "prompt_tokens", "input_tokens")
            self.output_tokens = _count(usage, "completion_tokens", "output_tokens")

    def _read_event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.ended = True
            return
        document = self._object(data)
        if document is not None:
            self._take_guarded(self._take_event, document)

    def _take_guarded(self, take: Any, document: dict[str, Any]) -> None:
        # These are what Python raises when a value has another form than expected. Anything else is
        # a defect of ours.
        try:
            take(document)
        except (
            AttributeError,
            IndexError,
            KeyError,
            OverflowError,
            TypeError,
            ValueError,
        ) as error:
            self.damaged = (
                f"the model server's answer is not as it should be: {type(error).__name__}: {error}"
            )

    def _object(self, data: bytes) -> dict[str, Any] | None:
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            self.damaged = f"the model server's answer is not JSON: {error}"
            return None
        if not isinstance(document, dict):
            self.damaged = (
                f"the model server's answer is not an object but {type(document).__name__}"
            )
            return None
        return document


class ChoicesAnswer(Answer):
    """A chat completion or a text completion: `choices`, put together in the form of a body."""

    def __init__(self) -> None:
        super().__init__()
        self._document: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    @property
    def messages(self) -> list[dict[str, Any]]:
        """One message a choice."""
        return [_message(choice) for choice in self._ordered()]

    @property
    def finish_reasons(self) -> list[str]:
        """Why each choice ended."""
        return [
            str(choice["finish_reason"])
            for choice in self._ordered()
            if choice.get("finish_reason")
        ]

    @property
    def prompt_token_ids(self) -> list[int]:
        """Of the prompt; text completions give them with the choice."""
        first = self._choices.get(0, {})
        return _integers(self._document.get("prompt_token_ids") or first.get("prompt_token_ids"))

    @property
    def response_token_ids(self) -> list[int]:
        """Of the first choice."""
        return _integers(self._choices.get(0, {}).get("token_ids"))

    @property
    def response_logprobs(self) -> list[float]:
        """Of the first choice."""
        logprobs = self._choices.get(0, {}).get("logprobs")
        if not isinstance(logprobs, dict):
            return []
        if isinstance(numbers := logprobs.get("token_logprobs"), list):  # text completions
            return [float(number) for number in numbers if isinstance(number, int | float)]
        found = [token.get("logprob") for token in _objects(logprobs.get("content"))]
        return [float(number) for number in found if isinstance(number, int | float)]

    @property
    def document(self) -> dict[str, Any]:
        """The answer as one body."""
        return self._document | {"choices": self._ordered()}

    def _ordered(self) -> list[dict[str, Any]]:
        return [self._choices[index] for index in sorted(self._choices)]

    def _take_document(self, document: dict[str, Any]) -> None:
        self._take_common(document)
        self._document = document
        for choice in _objects(document.get("choices")):
            self._choices[_index(choice)] = choice

    def _take_event(self, document: dict[str, Any]) -> None:
        self._take_common(document)
        said = {
            name: value
            for name, value in document.items()
            if name != "choices" and value is not None
        }
        said["object"] = str(said.get("object", "")).removesuffix(".chunk")
        self._document |= said
        for choice in _objects(document.get("choices")):
            self._extend(
                self._choices.setdefault(_index(choice), {"index": _index(choice)}), choice
            )

    def _extend(self, known: dict[str, Any], choice: dict[str, Any]) -> None:
        if "text" in choice:
            known["text"] = known.get("text", "") + choice["text"]
        if isinstance(delta := choice.get("delta"), dict):
            _extend_message(
                known.setdefault("message", {"role": "assistant", "content": None}), delta
            )
        if choice.get("finish_reason"):
            known["finish_reason"] = choice["finish_reason"]
        if isinstance(choice.get("prompt_token_ids"), list):
            known["prompt_token_ids"] = choice["prompt_token_ids"]
        if isinstance(choice.get("token_ids"), list):
            known.setdefault("token_ids", []).extend(choice["token_ids"])
        for part, values in (choice.get("logprobs") or {}).items():
            if isinstance(values, list):
                known.setdefault("logprobs", {}).setdefault(part, []).extend(values)


class ResponsesAnswer(Answer):
    """An answer of the Responses API; its stream ends with an event that holds the whole
    response.
    """

    ENDINGS = ("response.completed", "response.incomplete", "response.failed")

    def __init__(self) -> None:
        super().__init__()
        self._document: dict[str, Any] = {}

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was said and which functions were called, as one chat message."""
        texts: list[str] = []
        calls: list[dict[str, Any]] = []
        for item in _objects(self._document.get("output")):
            if item.get("type") == "message":
                texts += [
                    str(p.get("text", p.get("refusal", ""))) for p in _objects(item.get("content"))
                ]
            elif item.get("type") == "function_call":
                function = {"name": item.get("name"), "arguments": item.get("arguments")}
                calls.append({"id": item.get("call_id"), "type": "function", "function": function})
        if not texts and not calls:
            return []
        message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or None}
        return [message | ({"tool_calls": calls} if calls else {})]

    @property
    def finish_reasons(self) -> list[str]:
        """The response's status."""
        return [str(self._document["status"])] if self._document.get("status") else []

    @property
    def document(self) -> dict[str, Any]:
        """The response."""
        return self._document

    def _take_document(self, document: dict[str, Any]) -> None:
        self._take_common(document)
        self._document = document

    def _take_event(self, document: dict[str, Any]) -> None:
        response = document.get("response")
        if isinstance(response, dict):
            self._take_document(response)
        self.ended = self.ended or document.get("type") in self.ENDINGS


class EmbeddingsAnswer(Answer):
    """Embeddings: only what they cost is read."""

    def _take_document(self, document: dict[str, Any]) -> None:
        self._take_common(document)

    def _take_event(self, document: dict[str, Any]) -> None:
        self._take_common(document)


def _message(choice: dict[str, Any]) -> dict[str, Any]:
    if isinstance(message := choice.get("message"), dict):
        return message
    return {"role": "assistant", "content": choice.get("text")}


def _extend_message(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            for call in _objects(value):
                _extend_call(message.setdefault("tool_calls", []), call)
        elif name == "role":
            message["role"] = value
        elif isinstance(value, str):  # content, refusal, reasoning_content
            message[name] = (message.get(name) or "") + value
        elif name == "content" and not isinstance(value, list | None):
            raise TypeError(f"content is {type(value).__name__}, not a text")
        elif value is not None:
            message[name] = value


def _extend_call(calls: list[dict[str, Any]], call: dict[str, Any]) -> None:
    index = _index(call)
    while len(calls) <= index:
        calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
    known = calls[index]
    known["id"] = call.get("id") or known["id"]
    for part in ("name", "arguments"):
        known["function"][part] += (call.get("function") or {}).get(part) or ""


def _index(part: dict[str, Any]) -> int:
    index = int(part.get("index") or 0)
    if not 0 <= index < MOST_PARTS:
        raise ValueError(f"index {index} is not in 0 to {MOST_PARTS - 1}")
    return index


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(usage: dict[str, Any], *names: str) -> int | None:
    return next((usage[name] for name in names if isinstance(usage.get(name), int)), None)


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _integers(value: Any) -> list[int]:
    return [item for item in value if isinstance(item, int)] if isinstance(value, list) else []
