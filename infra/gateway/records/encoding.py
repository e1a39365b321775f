"""Spans as they are written: redacted, encoded, and never too large for the log."""

import structlog

from infra.gateway.records.redaction import Redactor
from schemas.serialization import encode_json
from schemas.spans import Attribute, SpanEvent
from streams.storage.records import MAX_RECORD_BYTES

_CONTENT = frozenset(
    {
        Attribute.INPUT_MESSAGES,
        Attribute.OUTPUT_MESSAGES,
        Attribute.TOOL_DEFINITIONS,
        Attribute.PROMPT_TOKEN_IDS,
        Attribute.RESPONSE_TOKEN_IDS,
        Attribute.RESPONSE_LOGPROBS,
    }
)
logger = structlog.get_logger(__name__)


def encode_span(redactor: Redactor, event: SpanEvent) -> tuple[SpanEvent, bytes]:
    """Return a span as it may be written, and encoded. Any thread or process may call it."""
    written = redactor.event(event)
    assert isinstance(written, SpanEvent)  # noqa: S101 - redaction changes no type
    value = encode_json(written)
    if len(value) > MAX_RECORD_BYTES:
        written = _without_content(written, len(value))
        value = encode_json(written)
    return written, value


def _without_content(event: SpanEvent, size: int) -> SpanEvent:
    """Return a span that is too large for the log without what makes it so."""
    logger.warning("span too large, its content is left out", span=event.span_id, bytes=size)
    attributes = event.payload.attributes
    kept = {name: value for name, value in attributes.items() if name not in _CONTENT}
    said = f"content of {size} bytes left out; the most is {MAX_RECORD_BYTES}"
    payload = event.payload.model_copy(update={"attributes": kept, "status_message": said})
    return event.model_copy(update={"payload": payload})
