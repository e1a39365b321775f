"""The span of a model call: who asked which version what, what it said, what it cost and how long it took."""

from typing import Any

from infra.gateway.completion import Completion
from infra.gateway.context import CallContext
from infra.gateway.routing import Target
from schemas.clock import now_nanoseconds
from schemas.genai import to_semantic
from schemas.spans import Attribute, Span, SpanEvent


class ModelCall:
    """A model call while it lasts.

    Args:
        body: the caller's request, a valid chat completion request.
    """

    def __init__(self, call: CallContext, body: dict[str, Any], target: Target) -> None:
        self.call = call
        self.completion = Completion()
        self._body = body
        self._target = target
        self._start = now_nanoseconds()
        self._first_token: int | None = None

    def first_token(self) -> None:
        """Note that the answer has begun."""
        self._first_token = self._first_token or now_nanoseconds()

    def span(self, status: int | None, error: str | None = None) -> SpanEvent:
        """Return the finished span.

        Args:
            status: the model server's HTTP status, None where it gave none.
            error: what went wrong; a damaged answer is an error of its own.
        """
        error = error or self.completion.damaged
        attributes: dict[str, Any] = {
            Attribute.OPERATION: "chat",
            Attribute.REQUEST_MODEL: self._body["model"],
            Attribute.REQUEST_TEMPERATURE: self._body.get("temperature"),
            Attribute.REQUEST_MAX_TOKENS: self._body.get("max_completion_tokens") or self._body.get("max_tokens"),
            Attribute.RESPONSE_MODEL: self.completion.model,
            Attribute.RESPONSE_ID: self.completion.id,
            Attribute.FINISH_REASONS: self.completion.finish_reasons or None,
            Attribute.INPUT_TOKENS: self.completion.usage.get("prompt_tokens"),
            Attribute.OUTPUT_TOKENS: self.completion.usage.get("completion_tokens"),
            Attribute.INPUT_MESSAGES: [to_semantic(message) for message in self._body["messages"]],
            Attribute.OUTPUT_MESSAGES: [to_semantic(message) for message in self.completion.messages],
            Attribute.TOOL_DEFINITIONS: self._body.get("tools"),
            Attribute.HTTP_STATUS: status,
            Attribute.ERROR_TYPE: error and ("cancelled" if error == "cancelled" else str(status or "unavailable")),
            Attribute.NODE: self.call.node,
            Attribute.CHECKPOINT: self._target.version,
            Attribute.STREAMED: bool(self._body.get("stream")),
            Attribute.TIME_TO_FIRST_TOKEN: self._first_token and (self._first_token - self._start) / 1e9,
            Attribute.PROMPT_TOKEN_IDS: self.completion.prompt_token_ids or None,
            Attribute.RESPONSE_TOKEN_IDS: self.completion.response_token_ids or None,
            Attribute.RESPONSE_LOGPROBS: self.completion.response_logprobs or None,
        }
        return SpanEvent(
            rollout_id=self.call.rollout_id,
            trace_id=self.call.trace_id,
            span_id=self.call.span_id,
            payload=Span(
                name=f"chat {self._body['model']}",
                kind="client",
                parent_span_id=self.call.parent_span_id,
                start_unix_nano=self._start,
                end_unix_nano=now_nanoseconds(),
                status="error" if error else "ok",
                status_message=error or "",
                attributes={str(name): value for name, value in attributes.items() if value is not None},
            ),
        )
