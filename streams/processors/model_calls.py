"""The model calls of a trajectory, each once, however many instruments saw it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.spans import Attribute, SpanEvent

OPERATIONS = ("chat", "text_completion")
"""Values of `gen_ai.operation.name` that ask a language model."""

_SEPARATE = ("execute_tool", "invoke_agent", "create_agent")
"""Work of its own: a model call inside of it is not the call around it."""

_NOTHING: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True)
class AnsweredCall:
    """A model call that was answered.

    Attributes:
        span: the innermost record of it, which is the gateway's if the call went through the
            gateway. It has the attributes that only the records around it have, too.
        span_ids: of all its records, the innermost first. A reward may name any of them.
    """

    span: SpanEvent
    span_ids: tuple[str, ...]


def asks_model(span: SpanEvent) -> bool:
    """Return whether a span is a record of a model call, answered or not."""
    return span.payload.text(Attribute.OPERATION) in OPERATIONS


def model_calls(spans: list[SpanEvent]) -> list[AnsweredCall]:
    """Return the answered model calls, in the order of their spans.

    A record may enclose another at any depth: between an instrumented client and the gateway lie
    the spans of the HTTP client. A record around several calls is none of them, so nothing is taken
    from it.
    """
    by_id = {span.span_id: span for span in spans if span.span_id is not None}
    answered = [span for span in spans if _is_answered(span)]
    around = {span.event_id: list(_records_around(span, by_id)) for span in answered}
    enclosing = {record.span_id for records in around.values() for record in records}
    innermost = [span for span in answered if span.span_id not in enclosing]
    inside = Counter(record.event_id for span in innermost for record in around[span.event_id])
    calls = []
    for span in innermost:
        others = [record for record in around[span.event_id] if inside[record.event_id] == 1]
        ids = [record.span_id for record in (span, *others) if record.span_id is not None]
        calls.append(AnsweredCall(_with_attributes_of(span, others), tuple(ids)))
    return calls


def _is_answered(span: SpanEvent) -> bool:
    said = span.payload.attributes.get(Attribute.OUTPUT_MESSAGES)
    return asks_model(span) and span.payload.status != "error" and bool(said)


def _records_around(span: SpanEvent, by_id: Mapping[str, SpanEvent]) -> Iterator[SpanEvent]:
    """Yield the other records of a call, from the inside to the outside."""
    seen = {span.span_id}  # whoever wrote the spans may have closed a circle
    parent = by_id.get(span.payload.parent_span_id or "")
    while parent is not None and parent.span_id not in seen:
        if parent.payload.text(Attribute.OPERATION) in _SEPARATE:
            return
        if asks_model(parent):
            yield parent
        seen.add(parent.span_id)
        parent = by_id.get(parent.payload.parent_span_id or "")


def _with_attributes_of(span: SpanEvent, others: list[SpanEvent]) -> SpanEvent:
    """Return a span with the attributes that it lacks and others have."""
    if not others:
        return span
    attributes: dict[str, Any] = {}
    # From the outside to the inside: what the gateway recorded counts more.
    for record in (*reversed(others), span):
        attributes |= {
            name: value
            for name, value in record.payload.attributes.items()
            if value not in _NOTHING
        }
    payload = span.payload.model_copy(update={"attributes": attributes})
    return span.model_copy(update={"payload": payload})
