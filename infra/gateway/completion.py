"""What a model answered, put together from one JSON body or from the chunks of a stream."""

from typing import Any

import orjson


class Completion:
    """An OpenAI chat completion as far as its span needs it; fed with a body or with server-sent events.

    Attributes:
        damaged: what could not be understood, None while all could.
        ended: whether the answer is complete.
    """

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self.usage: dict[str, Any] = {}
        self.ended = False
        self.damaged: str | None = None
        self._messages: dict[int, dict[str, Any]] = {}
        self._finish_reasons: dict[int, str] = {}
        self._choices: list[dict[str, Any]] = []
        self._document: dict[str, Any] = {}
        self._rest = b""

    def read_body(self, body: bytes) -> None:
        """Take in the answer to a request without streaming."""
        document = self._object(body)
        if document is None:
            return
        self.ended = True
        self._document = document
        self._take_common(document)
        for choice in _objects(document.get("choices")):
            index = int(choice.get("index") or 0)
            self._choices.append(choice)
            self._messages[index] = choice.get("message") or {}
            self._finish_reasons[index] = str(choice.get("finish_reason"))

    def read_chunk(self, chunk: bytes) -> None:
        """Take in a piece of an event stream; pieces need not end where events do."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._read_event(line[5:].strip())

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The assistant's messages in OpenAI's format, in the order of their choices."""
        return [self._messages[index] for index in sorted(self._messages)]

    @property
    def finish_reasons(self) -> list[str]:
        """Why each choice ended."""
        return [self._finish_reasons[index] for index in sorted(self._finish_reasons)]

    @property
    def prompt_token_ids(self) -> list[int]:
        """Token ids of the prompt, where the server gives them (vLLM's `return_token_ids`)."""
        return _integers(self._document.get("prompt_token_ids"))

    @property
    def response_token_ids(self) -> list[int]:
        """Token ids of the first choice, where the server gives them."""
        return _integers(self._choices[0].get("token_ids")) if self._choices else []

    @property
    def response_logprobs(self) -> list[float]:
        """Natural log-probabilities of the first choice's tokens, where they were asked for."""
        if not self._choices:
            return []
        content = (self._choices[0].get("logprobs") or {}).get("content")
        return [float(token["logprob"]) for token in _objects(content) if "logprob" in token]

    def _read_event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.ended = True
            return
        document = self._object(data)
        if document is None:
            return
        self._take_common(document)
        for choice in _objects(document.get("choices")):
            self._extend(int(choice.get("index") or 0), choice.get("delta") or {})
            if reason := choice.get("finish_reason"):
                self._finish_reasons[int(choice.get("index") or 0)] = str(reason)

    def _extend(self, index: int, delta: dict[str, Any]) -> None:
        message = self._messages.setdefault(index, {"role": "assistant", "content": None})
        if content := delta.get("content"):
            message["content"] = (message["content"] or "") + content
        for call in _objects(delta.get("tool_calls")):
            calls = message.setdefault("tool_calls", [])
            while len(calls) <= int(call.get("index") or 0):
                calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
            known = calls[int(call.get("index") or 0)]
            known["id"] = call.get("id") or known["id"]
            for part in ("name", "arguments"):
                known["function"][part] += (call.get("function") or {}).get(part) or ""

    def _take_common(self, document: dict[str, Any]) -> None:
        self.id = document.get("id") or self.id
        self.model = document.get("model") or self.model
        self.usage = document.get("usage") or self.usage

    def _object(self, data: bytes) -> dict[str, Any] | None:
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            self.damaged = f"the model server's answer is not JSON: {error}"
            return None
        if not isinstance(document, dict):
            self.damaged = f"the model server's answer is not an object but {type(document).__name__}"
            return None
        return document


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _integers(value: Any) -> list[int]:
    return [int(item) for item in value] if isinstance(value, list) else []
