"""OTLP/HTTP traces: spans of any OpenTelemetry SDK become span events.

Spec: OTLP 1.x over HTTP, protobuf and JSON (https://opentelemetry.io/docs/specs/otlp/). The
attribute `everloop.rollout.id`, of the span or of its resource, names the rollout. A span without
it belongs to the rollout of its trace.
"""

import asyncio
import base64
import binascii
import pickle
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from pydantic import ValidationError

from infra.gateway.apis.conventions import span_attributes
from infra.gateway.calls.rollouts import assign
from infra.gateway.http.access import Agent, Caller
from infra.gateway.http.bodies import BoundedRoute, parse_json, read_body
from infra.gateway.http.documents import is_large
from infra.gateway.http.problems import ProblemError
from infra.gateway.http.threads import LARGE_BYTES
from infra.gateway.records.encoding import encode_span
from infra.gateway.records.redaction import Redactor
from infra.gateway.state.conversations import AGENT
from infra.gateway.state.services import Services, Shared
from schemas.envelope import rollout_key
from schemas.serialization import readable
from schemas.spans import Attribute, Span, SpanEvent
from schemas.topics import SPANS
from streams.storage.records import Outgoing

router = APIRouter(route_class=BoundedRoute)

PROTOBUF = "application/x-protobuf"
AT_ONCE = 100
"""Spans that are handed over before other calls have a turn."""

_GZIP = 31
"""For zlib: 15 bits of window, and 16 for gzip's header."""
_KINDS = ("internal", "internal", "server", "client", "producer", "consumer")
_STATUSES = ("unset", "ok", "error")
_ID_FIELDS = frozenset({"traceId", "spanId", "parentSpanId"})


@router.post("/v1/traces")
async def export(request: Request, services: Shared, caller: Agent) -> Response:
    """Record a batch of spans. The answer counts the refused ones and says why."""
    body = await read_body(request)
    as_json = request.headers.get("content-type", "").startswith("application/json")
    limit = services.settings.max_body_bytes
    packed = limit if request.headers.get("content-encoding") == "gzip" else None
    asked = body, packed, as_json, caller.tenant, services.redactor
    if is_large(body) or (packed and _is_large_unpacked(body)):
        refused, *pickled = await services.readers.run(_read_elsewhere, *asked)
        for some in pickled:
            _record(services, caller, pickle.loads(some))  # noqa: S301 - our own reader's
            await asyncio.sleep(0)  # others have a turn
    else:
        refused, spans = read_spans(*asked)
        if spans:
            _record(services, caller, spans)
    answer = ExportTraceServiceResponse()
    if refused:
        answer.partial_success.rejected_spans = len(refused)
        answer.partial_success.error_message = refused[0]
    if as_json:
        partial = {"rejectedSpans": len(refused), "errorMessage": refused[0]} if refused else None
        return Response(
            orjson.dumps({"partialSuccess": partial} if partial else {}),
            media_type="application/json",
        )
    return Response(answer.SerializeToString(), media_type=PROTOBUF)


@dataclass(frozen=True)
class Head:
    """What the gateway must know of a span. `named` says whether it names its rollout."""

    event_id: str
    rollout_id: str
    trace_id: str
    named: bool


def read_spans(
    body: bytes, packed: int | None, as_json: bool, tenant: str, redactor: Redactor
) -> tuple[list[str], list[tuple[Head, bytes]]]:
    """Return why spans of a batch were refused, and the others, each with its head and as it may be
    written. Any process may call it.

    Args:
        packed: most bytes of a body that is packed with gzip; None if it is not packed.

    Raises:
        ProblemError: 400, it is no batch; 413, it is too large when unpacked.
    """
    if packed is not None:
        body = _inflate(body, packed)
    spans: list[tuple[Head, bytes]] = []
    # One bad span must not cost the others: OTLP has a field for partial success.
    refused: list[str] = []
    for span, attributes in _spans(_parse_json(body) if as_json else _parse_protobuf(body)):
        try:
            event = _event(tenant, span, span_attributes(attributes))
        except ValidationError as error:
            refused.append(readable(error))
        except ValueError as error:
            refused.append(str(error))
        else:
            named = bool(attributes.get(Attribute.ROLLOUT_ID))
            head = Head(event.event_id, event.rollout_id, event.trace_id, named)
            spans.append((head, encode_span(redactor, event)[1]))
    return refused, spans


def _read_elsewhere(*asked: Any) -> tuple[Any, ...]:
    """Return, from a reader, why spans were refused, and the others, pickled some at a time."""
    refused, spans = read_spans(*asked)
    begins = range(0, len(spans), AT_ONCE)
    return refused, *(pickle.dumps(spans[begin : begin + AT_ONCE]) for begin in begins)


def _record(services: Services, caller: Caller, spans: Sequence[tuple[Head, bytes]]) -> None:
    for head, _ in spans:
        key = rollout_key(caller.tenant, head.rollout_id)
        if not head.named:
            services.conversations.note_span(caller.tenant, head.trace_id)
            if not services.routing.knows_begun(key):
                assign(services, caller.tenant, head.rollout_id, head.trace_id, {}, AGENT)
    services.record_encoded_spans(
        [
            Outgoing(SPANS, rollout_key(caller.tenant, head.rollout_id), head.event_id, value)
            for head, value in spans
        ]
    )


def _is_large_unpacked(body: bytes) -> bool:
    """Return whether a packed body may be large. No more of it is unpacked than that takes."""
    inflater = zlib.decompressobj(wbits=_GZIP)
    try:
        content = inflater.decompress(body, LARGE_BYTES)
    except zlib.error:
        return False  # it is refused soon
    return bool(inflater.unconsumed_tail) or is_large(content)


def _inflate(body: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj(wbits=_GZIP)
    try:
        # With a limit, because a few bytes of gzip can unpack to gigabytes.
        content = inflater.decompress(body, limit)
    except zlib.error as error:
        raise ProblemError(400, "Malformed body", f"the body is not gzip: {error}") from error
    if inflater.unconsumed_tail:
        raise ProblemError(
            413, "Request too large", f"the body is longer than {limit} bytes when unpacked"
        )
    return content


def _parse_protobuf(body: bytes) -> ExportTraceServiceRequest:
    try:
        return ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        raise ProblemError(
            400, "Malformed body", f"the body is no OTLP trace export: {error}"
        ) from error


def _parse_json(body: bytes) -> ExportTraceServiceRequest:
    try:
        document = _with_base64_ids(parse_json(body))
        return ParseDict(document, ExportTraceServiceRequest(), ignore_unknown_fields=True)
    except (ParseError, binascii.Error, AttributeError, TypeError, ValueError) as error:
        raise ProblemError(
            400, "Malformed body", f"the body is no OTLP/JSON trace export: {error}"
        ) from error


def _with_base64_ids(value: Any) -> Any:
    """Return OTLP/JSON with base64 ids. OTLP writes them in hexadecimal, protobuf in base64."""
    if isinstance(value, list):
        return [_with_base64_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: base64.b64encode(bytes.fromhex(item)).decode()
        if name in _ID_FIELDS and isinstance(item, str)
        else _with_base64_ids(item)
        for name, item in value.items()
    }


def _spans(batch: ExportTraceServiceRequest) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield each span with its attributes over those of its resource."""
    for resource in batch.resource_spans:
        shared = _attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield span, shared | _attributes(span.attributes)


def _event(tenant: str, span: Any, attributes: dict[str, Any]) -> SpanEvent:
    if span.end_time_unix_nano < span.start_time_unix_nano:
        raise ValueError(f"span {span.name!r} ends before it starts")
    return SpanEvent(
        tenant=tenant,
        rollout_id=attributes.get(Attribute.ROLLOUT_ID) or span.trace_id.hex(),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        payload=Span(
            name=span.name,
            kind=_KINDS[span.kind] if 0 <= span.kind < len(_KINDS) else "internal",
            parent_span_id=span.parent_span_id.hex() or None,
            start_unix_nano=span.start_time_unix_nano,
            end_unix_nano=span.end_time_unix_nano,
            status=_STATUSES[span.status.code]
            if 0 <= span.status.code < len(_STATUSES)
            else "unset",
            status_message=span.status.message,
            attributes=attributes,
        ),
    )


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    """Return an OTLP AnyValue as JSON; a string that holds a JSON list or object stays a string."""
    kind = value.WhichOneof("value")
    match kind:
        case None:
            return None
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case "bytes_value":
            return base64.b64encode(value.bytes_value).decode()
        case _:
            return getattr(value, kind)
