"""The gateway's own spans reach another OpenTelemetry backend over real OTLP/HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from infra.config.settings import Settings
from infra.gateway.settings import GatewaySettings
from schemas.spans import Attribute, SpanEvent
from schemas.topics import SPANS
from tests.conftest import serving
from tests.infra.conftest import model_route, publish, running_gateway


class Collector:
    """Keeps what is exported to it."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.app = FastAPI()
        self.app.post("/v1/traces")(self._export)

    async def _export(self, request: Request) -> Response:
        self.requests.append(ExportTraceServiceRequest.FromString(await request.body()))
        return Response(media_type="application/x-protobuf")


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    collector = Collector()
    with serving(collector.app) as url:
        yield collector, f"{url}/v1/traces"


def test_spans_are_sent_on_as_they_were_recorded(
    tmp_path: Path, upstream_url: str, collector: tuple[Collector, str]
) -> None:
    kept, endpoint = collector
    settings = Settings(
        data_dir=tmp_path / "data", gateway=GatewaySettings(export_traces_to=endpoint)
    )
    publish(
        settings.log_path,
        model_route("detailed", upstream_url),
        model_route("failing", upstream_url),
    )
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with running_gateway(settings) as gateway:
        gateway.chat("detailed", headers={"traceparent": parent, "x-everloop-rollout-id": "r1"})
        gateway.chat("failing", headers={"x-everloop-rollout-id": "r1"})
        events = gateway.soon(SPANS, SpanEvent, 2)
    exported = [
        span
        for request in kept.requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert {span.span_id.hex() for span in exported} == {event.span_id for event in events}
    (first,) = [span for span in exported if span.name == "chat detailed"]
    (second,) = [span for span in exported if span.name == "chat failing"]
    assert first.parent_span_id.hex() == "b7ad6b7169203331"
    said = {pair.key: pair.value for pair in first.attributes}
    assert said[Attribute.ROLLOUT_ID].string_value == "r1"
    assert said[Attribute.INPUT_TOKENS].int_value == 7
    assert [v.int_value for v in said[Attribute.RESPONSE_TOKEN_IDS].array_value.values] == [1, 2]
    assert "hello there" in said[Attribute.OUTPUT_MESSAGES].string_value
    assert (second.status.code, second.status.message) == (2, "status 500")


def test_a_collector_that_is_away_disturbs_nobody(tmp_path: Path, upstream_url: str) -> None:
    away = GatewaySettings(export_traces_to="http://127.0.0.1:9/v1/traces")
    settings = Settings(data_dir=tmp_path / "data", gateway=away)
    publish(settings.log_path, model_route("tiny", upstream_url))
    with running_gateway(settings) as gateway:
        assert gateway.chat().is_success
        assert len(gateway.soon(SPANS, SpanEvent)) == 1
