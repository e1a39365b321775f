"""Export of span events to another OpenTelemetry backend, over OTLP/HTTP."""

from typing import Any

import orjson
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from schemas.spans import SpanEvent

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_RESOURCE = Resource.create({"service.name": "everloop-gateway"})


class SpanExport:
    """Sends spans in batches, from a thread of its own.

    If the backend is too slow, spans are dropped there. The log has them all.

    Args:
        endpoint: the backend's URL, such as `http://collector:4318/v1/traces`.
    """

    def __init__(self, endpoint: str) -> None:
        self._processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=10))

    def span(self, event: SpanEvent) -> None:
        """Queue a span for the backend."""
        span = event.payload
        context = _context(event.trace_id, event.span_id)
        parent = _context(event.trace_id, span.parent_span_id) if span.parent_span_id else None
        self._processor.on_end(
            ReadableSpan(
                name=span.name,
                context=context,
                parent=parent,
                resource=_RESOURCE,
                attributes={
                    "everloop.rollout.id": event.rollout_id,
                    **{name: _attribute(value) for name, value in span.attributes.items()},
                },
                kind=SpanKind[span.kind.upper()],
                status=Status(StatusCode[span.status.upper()], span.status_message or None)
                if span.status == "error"
                else Status(StatusCode[span.status.upper()]),
                start_time=span.start_unix_nano,
                end_time=span.end_unix_nano,
            )
        )

    def close(self) -> None:
        """Send what waits, then stop."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=_SAMPLED)


def _attribute(value: Any) -> Any:
    """Return what OpenTelemetry allows: a scalar or a list of one kind. Others become JSON."""
    if isinstance(value, str | bool | int | float):
        return value
    if (
        isinstance(value, list)
        and len({type(item) for item in value}) == 1
        and isinstance(value[0], str | int | float)
    ):
        return value
    return orjson.dumps(value).decode()
