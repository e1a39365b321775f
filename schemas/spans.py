"""Spans: operations within a rollout, named by OpenTelemetry's conventions for generative AI.

Model calls carry `gen_ai.input.messages` and `gen_ai.output.messages` in the structure of the
semantic conventions (role and parts). `schemas.genai` converts them from and to OpenAI's format.
"""

from enum import StrEnum
from typing import Literal

from pydantic import Field, JsonValue

from schemas.envelope import Event, EventData, Name, SpanId, TraceId


class Attribute(StrEnum):
    """Names of attributes.

    `gen_ai.*` are OpenTelemetry's (GenAI semantic conventions 1.38); `everloop.*` are ours.
    """

    OPERATION = "gen_ai.operation.name"
    PROVIDER = "gen_ai.provider.name"
    AGENT_NAME = "gen_ai.agent.name"
    CONVERSATION_ID = "gen_ai.conversation.id"
    REQUEST_MODEL = "gen_ai.request.model"
    REQUEST_TEMPERATURE = "gen_ai.request.temperature"
    REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
    RESPONSE_ID = "gen_ai.response.id"
    RESPONSE_MODEL = "gen_ai.response.model"
    FINISH_REASONS = "gen_ai.response.finish_reasons"
    INPUT_TOKENS = "gen_ai.usage.input_tokens"
    OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
    INPUT_MESSAGES = "gen_ai.input.messages"
    OUTPUT_MESSAGES = "gen_ai.output.messages"
    TOOL_DEFINITIONS = "gen_ai.tool.definitions"
    TOOL_NAME = "gen_ai.tool.name"
    TOOL_ARGUMENTS = "gen_ai.tool.call.arguments"
    TOOL_RESULT = "gen_ai.tool.call.result"
    ERROR_TYPE = "error.type"
    HTTP_STATUS = "http.response.status_code"
    OPENAI_API = "openai.api.type"
    ROLLOUT_ID = "everloop.rollout.id"
    NODE = "everloop.node"
    CHECKPOINT = "everloop.checkpoint"
    STREAMED = "everloop.streamed"
    GROUP = "everloop.group"
    KEY_ID = "everloop.key.id"
    ATTEMPTS = "everloop.attempts"
    COST = "everloop.cost"
    INVALID_TOOL_CALLS = "everloop.invalid_tool_calls"
    ENDPOINT = "server.address"
    TIME_TO_FIRST_TOKEN = "everloop.time_to_first_token_s"  # noqa: S105 - a name, not a secret
    PROMPT_TOKEN_IDS = "everloop.prompt_token_ids"  # noqa: S105
    RESPONSE_TOKEN_IDS = "everloop.response_token_ids"  # noqa: S105
    RESPONSE_LOGPROBS = "everloop.response_logprobs"


class Span(EventData):
    """One finished span.

    Attributes:
        name: `{operation} {target}`, such as `chat senior_researcher_llm`.
        parent_span_id: the enclosing span, None for a root.
        start_unix_nano, end_unix_nano: nanoseconds since the unix epoch, end >= start.
        status: OpenTelemetry's status code.
        attributes: OpenTelemetry attributes; values are JSON.
    """

    name: str
    kind: Literal["internal", "server", "client", "producer", "consumer"] = "internal"
    parent_span_id: SpanId | None = None
    start_unix_nano: int = Field(ge=0)
    end_unix_nano: int = Field(ge=0)
    status: Literal["unset", "ok", "error"] = "unset"
    status_message: str = ""
    attributes: dict[str, JsonValue] = {}

    @property
    def duration_s(self) -> float:
        """Seconds from start to end."""
        return (self.end_unix_nano - self.start_unix_nano) / 1e9

    def text(self, attribute: Attribute) -> str | None:
        """Return a string attribute, or None where it is absent or not a string."""
        value = self.attributes.get(attribute)
        return value if isinstance(value, str) else None


class SpanEvent(Event[Span]):
    """A span ended. Key: rollout_id."""

    type: Literal["span"] = "span"
    rollout_id: Name
    trace_id: TraceId
    span_id: SpanId
