"""A model call while it lasts, and the span that records its request, answer, cost and time."""

from dataclasses import replace
from functools import cached_property
from typing import Any

from infra.gateway.calls.formats import Api, Messages
from infra.gateway.calls.tool_calls import call_problems, repair_request
from infra.gateway.http.context import CallContext
from infra.gateway.routes.table import Target
from schemas.clock import now_nanoseconds
from schemas.genai import to_semantic
from schemas.identifiers import new_span_id
from schemas.rollouts import Split
from schemas.spans import Attribute, Span, SpanEvent


class ModelCall:
    """A model call while it lasts.

    Args:
        rollout_id: the rollout it belongs to.
        group, split: of that rollout.
        body: the caller's request, valid for its API.
        target: what it is sent to first.

    Attributes:
        answer: what has come back so far.
        target: the server that answered; until then the first one that is asked.
        size: bytes of request and answer so far, about.
        attempts: number of tries.
    """

    def __init__(
        self,
        api: Api,
        call: CallContext,
        rollout_id: str,
        group: str,
        body: dict[str, Any],
        target: Target,
        split: Split = "train",
        size: int = 0,
    ) -> None:
        self.api = api
        self.call = call
        self.rollout_id = rollout_id
        self.body = body
        self.target = target
        self.attempts = 1
        self.answer = api.answer()
        self.start = now_nanoseconds()
        self.split = split
        self.size = size
        self._group = group
        self._first_token: int | None = None

    @property
    def key(self) -> str:
        """The key of its rollout."""
        return self.call.key(self.rollout_id)

    @property
    def cost(self) -> float:
        """Cost in the unit of the endpoint's prices."""
        endpoint = self.target.endpoint
        if endpoint is None:
            return 0.0
        # Prices are for a million tokens.
        paid = (self.answer.input_tokens or 0) * endpoint.input_price
        return (paid + (self.answer.output_tokens or 0) * endpoint.output_price) / 1e6

    @property
    def duration_s(self) -> float:
        """Seconds since it began."""
        return (now_nanoseconds() - self.start) / 1e9

    @cached_property
    def messages(self) -> Messages | None:
        """The request's messages in OpenAI's chat format; None if the API has none."""
        return self.api.messages(self.body)

    @cached_property
    def invalid_calls(self) -> dict[str, str]:
        """What is wrong with the tool calls, by the id of each. Valid once the answer is there."""
        tools = self.body.get("tools")
        return call_problems(self.answer.messages, tools) if tools else {}

    def repair_call(self) -> "ModelCall":
        """Return a call that asks again and says what was wrong. It is a span of its own."""
        call = replace(self.call, span_id=new_span_id())
        body = repair_request(self.body, self.answer.messages, self.invalid_calls)
        return ModelCall(
            self.api, call, self.rollout_id, self._group, body, self.target, self.split, self.size
        )

    def mark_first_token(self) -> None:
        """Keep the time of the first piece of the answer."""
        self._first_token = self._first_token or now_nanoseconds()

    def span(
        self, status: int | None, error: str | None = None, ended: int | None = None
    ) -> SpanEvent:
        """Return the finished span.

        Args:
            status: the model server's HTTP status; None if it gave none.
            error: what went wrong. A damaged answer is an error too.
            ended: when, in nanoseconds since the unix epoch; None: now.
        """
        error = error or self.answer.damaged
        attributes = {
            **self._request_attributes(),
            **self._answer_attributes(),
            **self._outcome_attributes(status, error),
        }
        return SpanEvent(
            tenant=self.call.caller.tenant,
            rollout_id=self.rollout_id,
            trace_id=self.call.trace_id,
            span_id=self.call.span_id,
            # Its values come from a JSON document: to look at each again would take seconds.
            payload=Span.model_construct(
                name=f"{self.api.operation} {self.body['model']}",
                kind="client",
                parent_span_id=self.call.parent_span_id,
                start_unix_nano=self.start,
                end_unix_nano=ended or now_nanoseconds(),
                status="error" if error else "ok",
                status_message=error or "",
                attributes={
                    str(name): value for name, value in attributes.items() if value is not None
                },
            ),
        )

    def _request_attributes(self) -> dict[str, Any]:
        """Return what was asked, and by whom."""
        body, call = self.body, self.call
        return {
            Attribute.OPERATION: self.api.operation,
            Attribute.OPENAI_API: self.api.name,
            Attribute.REQUEST_MODEL: body["model"],
            Attribute.REQUEST_TEMPERATURE: body.get("temperature"),
            # Each of OpenAI's APIs has a name of its own for the limit.
            Attribute.REQUEST_MAX_TOKENS: _first(
                body, "max_completion_tokens", "max_tokens", "max_output_tokens"
            ),
            Attribute.INPUT_MESSAGES: [to_semantic(message) for message in self.messages]
            if self.messages is not None
            else None,
            Attribute.TOOL_DEFINITIONS: body.get("tools"),
            Attribute.STREAMED: bool(body.get("stream")),
            Attribute.NODE: call.node,
            Attribute.GROUP: self._group,
            Attribute.KEY_ID: call.caller.key_id,
        }

    def _answer_attributes(self) -> dict[str, Any]:
        """Return what the model said."""
        answer = self.answer
        return {
            Attribute.RESPONSE_MODEL: answer.model,
            Attribute.RESPONSE_ID: answer.id,
            Attribute.FINISH_REASONS: answer.finish_reasons or None,
            Attribute.INPUT_TOKENS: answer.input_tokens,
            Attribute.OUTPUT_TOKENS: answer.output_tokens,
            Attribute.OUTPUT_MESSAGES: [to_semantic(message) for message in answer.messages],
            Attribute.INVALID_TOOL_CALLS: len(self.invalid_calls) or None,
            Attribute.PROMPT_TOKEN_IDS: answer.prompt_token_ids or None,
            Attribute.RESPONSE_TOKEN_IDS: answer.response_token_ids or None,
            Attribute.RESPONSE_LOGPROBS: answer.response_logprobs or None,
        }

    def _outcome_attributes(self, status: int | None, error: str | None) -> dict[str, Any]:
        """Return which server answered, how, after how long, and for how much."""
        endpoint = self.target.endpoint
        return {
            Attribute.HTTP_STATUS: status,
            Attribute.ERROR_TYPE: error
            and ("cancelled" if error == "cancelled" else str(status or "unavailable")),
            Attribute.ENDPOINT: endpoint and endpoint.base_url,
            Attribute.CHECKPOINT: self.target.version,
            Attribute.ATTEMPTS: self.attempts,
            Attribute.COST: self.cost,
            Attribute.TIME_TO_FIRST_TOKEN: self._first_token
            and (self._first_token - self.start) / 1e9,
        }


def _first(body: dict[str, Any], *names: str) -> Any:
    return next((body[name] for name in names if body.get(name) is not None), None)
