"""A model call while it lasts, and the span that records its request, answer, cost and time."""

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Self

import orjson

from infra.gateway.calls.formats import Api, Messages
from infra.gateway.calls.tool_calls import call_problems, repair_request
from infra.gateway.http.context import CallContext
from infra.gateway.http.documents import Body, Document, Elsewhere, Here, is_large
from infra.gateway.http.readers import Readers
from infra.gateway.http.threads import run_aside
from infra.gateway.records.encoding import encode_span
from infra.gateway.records.redaction import Redactor
from infra.gateway.routes.targets import Target
from infra.gateway.state.conversations import Transcript
from infra.gateway.state.services import Services
from schemas.clock import now_nanoseconds
from schemas.genai import to_semantic
from schemas.identifiers import new_span_id
from schemas.rollouts import Split
from schemas.spans import Attribute, Span, SpanEvent


@dataclass(frozen=True)
class Ending:
    """What the gateway must know of an answer when it has ended.

    Attributes:
        damaged: what could not be read; None if everything could.
        input_tokens, output_tokens: as the server counted them; 0 if it did not say.
        invalid_calls: what is wrong with the tool calls, by the id of each.
        said: what the requests will continue that continue this answer (`Transcript.after`).
    """

    damaged: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    invalid_calls: dict[str, str] = field(default_factory=dict)
    said: list[bytes] = field(default_factory=list)


class ModelCall:
    """A model call while it lasts.

    Args:
        rollout_id: the rollout it belongs to.
        group, split: of that rollout.
        model: logical name of the model.
        document: the caller's request, valid for its API.
        target: what it is sent to first.
        transcript: what the caller said in the conversation; None if the caller named the rollout.

    Attributes:
        answer: what has come back so far of a stream, or of a small answer.
        content: a whole answer, where readers read it.
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
        model: str,
        document: Document,
        target: Target,
        split: Split = "train",
        transcript: Transcript | None = None,
    ) -> None:
        self.api = api
        self.call = call
        self.rollout_id = rollout_id
        self.model = model
        self.document = document
        self.target = target
        self.transcript = transcript
        self.content: bytes | None = None
        self.attempts = 1
        self.answer = api.answer()
        self.start = now_nanoseconds()
        self.split = split
        self.size = document.size
        self._group = group
        self._first_token: int | None = None

    @property
    def key(self) -> str:
        """The key of its rollout."""
        return self.call.key(self.rollout_id)

    @property
    def body(self) -> Body:
        """The request. Only a reader asks for that of a document that is elsewhere."""
        assert isinstance(self.document, Here)  # noqa: S101 - see above
        return self.document.body

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Return what so many tokens cost, in the unit of the endpoint's prices."""
        endpoint = self.target.endpoint
        if endpoint is None:
            return 0.0
        # Prices are for a million tokens.
        paid = input_tokens * endpoint.input_price
        return (paid + output_tokens * endpoint.output_price) / 1e6

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

    async def read(self, content: bytes, readers: Readers | None) -> Ending:
        """Read a whole answer, and return how it ended.

        Args:
            readers: read it if it is large. None: this process does.
        """
        self.size += len(content)
        if isinstance(self.document, Here):
            if readers is None or not is_large(content):
                return await run_aside(self.size, self._read_here, content)
            self.document = Elsewhere(orjson.dumps(self.document.body), readers)
        self.content = content
        return await self.document.apply(_read_elsewhere, self, content)

    def ending(self) -> Ending:
        """Return how the answer ended, as far as this process can tell: it does not know the tools
        of a request that is elsewhere. Their calls are looked at with the span.
        """
        answer, transcript = self.answer, self.transcript
        return Ending(
            answer.damaged,
            answer.input_tokens or 0,
            answer.output_tokens or 0,
            self.invalid_calls if isinstance(self.document, Here) else {},
            transcript.after(answer.messages, answer.id) if transcript is not None else [],
        )

    async def repair_call(self) -> "ModelCall":
        """Return a call that asks again and says what was wrong. It is a span of its own."""
        document: Document
        if isinstance(self.document, Here):
            document = Here(self._repaired(), self.size)
        else:
            document = await self.document.changed(_repaired_elsewhere, self, self.content)
        call, group = replace(self.call, span_id=new_span_id()), self._group
        return ModelCall(
            self.api,
            call,
            self.rollout_id,
            group,
            self.model,
            document,
            self.target,
            self.split,
            self.transcript,
        )

    def record(
        self, services: Services, status: int | None, error: str | None, counted: bool = True
    ) -> None:
        """Record the span, which ends now; a large one soon after. See `span`.

        Args:
            counted: whether the invalid tool calls are counted already (`ending`).
        """
        ended = now_nanoseconds()
        if isinstance(self.document, Here):
            services.record_span(self.key, self.size, partial(self.span, status, error, ended))
            return
        span = self.document.apply(
            _span_elsewhere, self, self.content, services.redactor, status, error, ended
        )
        uncounted = None if counted else (self.model, self.target.version)
        services.record_encoded_span(self.key, span, uncounted)

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
                name=f"{self.api.operation} {self.model}",
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
            Attribute.REQUEST_MODEL: self.model,
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
        endpoint, answer = self.target.endpoint, self.answer
        return {
            Attribute.HTTP_STATUS: status,
            Attribute.ERROR_TYPE: error
            and ("cancelled" if error == "cancelled" else str(status or "unavailable")),
            Attribute.ENDPOINT: endpoint and endpoint.base_url,
            Attribute.CHECKPOINT: self.target.version,
            Attribute.ATTEMPTS: self.attempts,
            Attribute.COST: self.cost(answer.input_tokens or 0, answer.output_tokens or 0),
            Attribute.TIME_TO_FIRST_TOKEN: self._first_token
            and (self._first_token - self.start) / 1e9,
        }

    def _read_here(self, content: bytes) -> Ending:
        self.answer.read_body(content)
        return self.ending()

    def _repaired(self) -> Body:
        return repair_request(self.body, self.answer.messages, self.invalid_calls)

    def _with(self, body: Body, content: bytes | None) -> Self:
        """Take in, in a reader, what a pickled call leaves behind."""
        self.document = Here(body, 0)
        if content is not None:
            self.answer.read_body(content)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what is large. Readers get it as bytes."""
        return {**self.__dict__, "document": None, "content": None}


# What readers do. The body is that of the call, and `content` a whole answer to it.


def _read_elsewhere(body: Body, model_call: ModelCall, content: bytes) -> Ending:
    return model_call._with(body, content).ending()


def _repaired_elsewhere(body: Body, model_call: ModelCall, content: bytes | None) -> Body:
    return model_call._with(body, content)._repaired()


def _span_elsewhere(
    body: Body,
    model_call: ModelCall,
    content: bytes | None,
    redactor: Redactor,
    status: int | None,
    error: str | None,
    ended: int,
) -> tuple[str, bytes, int]:
    model_call._with(body, content)
    span, value = encode_span(redactor, model_call.span(status, error, ended))
    return span.event_id, value, len(model_call.invalid_calls)


def _first(body: dict[str, Any], *names: str) -> Any:
    return next((body[name] for name in names if body.get(name) is not None), None)
