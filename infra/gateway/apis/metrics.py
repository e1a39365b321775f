"""Metrics of the gateway, for Prometheus
(https://prometheus.io/docs/instrumenting/exposition_formats/).
"""

from collections.abc import Iterator, Mapping

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.gateway.http.bodies import BoundedRoute
from infra.gateway.state.services import Services, Shared

router = APIRouter(route_class=BoundedRoute)


class GatewayCollector(Collector):
    """Reads the gateway's own counts when Prometheus asks. So counting costs a request nothing."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        yield from self._log_metrics()
        yield from self._call_metrics()
        yield from self._server_metrics()
        heartbeat = self._services.heartbeat
        yield GaugeMetricFamily(
            "everloop_event_loop_delay_seconds",
            "Longest time in the last minutes for which one piece of work kept all others waiting.",
            heartbeat.longest_s,
        )
        yield CounterMetricFamily(
            "everloop_event_loop_long_delays",
            "Delays of the event loop of more than 5 ms.",
            heartbeat.long,
        )
        yield CounterMetricFamily(
            "everloop_switches",
            "Routes that changed what they serve.",
            self._services.routing.switches,
        )

    def _log_metrics(self) -> Iterator[Metric]:
        status = self._services.publisher.status
        yield _counter(
            "everloop_events_accepted",
            "Records handed over for the log.",
            ["topic"],
            status.accepted,
        )
        yield _counter(
            "everloop_events_lost", "Records that nothing could keep.", ["topic"], status.lost
        )
        yield GaugeMetricFamily(
            "everloop_spooled_events", "Records that wait in the spool.", status.spooled
        )
        yield GaugeMetricFamily(
            "everloop_log_writable", "1 while the log takes records.", status.error is None
        )

    def _call_metrics(self) -> Iterator[Metric]:
        counts = self._services.counts
        yield _counter(
            "everloop_model_requests", "Model calls by outcome.", ["outcome"], counts.requests
        )
        yield _counter(
            "everloop_tokens", "Tokens of model calls.", ["model", "direction"], counts.tokens
        )
        yield _counter(
            "everloop_cost",
            "Cost of model calls, in the unit of the prices.",
            ["model"],
            counts.cost,
        )
        yield _counter(
            "everloop_invalid_tool_calls",
            "Tool calls that the caller's schemas do not allow.",
            ["model", "version"],
            counts.invalid_tool_calls,
        )
        yield _counter(
            "everloop_shadow_requests", "Copies of calls by outcome.", ["outcome"], counts.shadows
        )

    def _server_metrics(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "everloop_endpoint_up", "0 while a server is left alone.", labels=["endpoint"]
        )
        inflight = GaugeMetricFamily(
            "everloop_endpoint_inflight", "Calls under way.", labels=["endpoint"]
        )
        for endpoint, breaker in self._services.upstreams.breakers.items():
            up.add_metric([endpoint], breaker.open_until == 0.0)
            inflight.add_metric([endpoint], breaker.inflight)
        yield from (up, inflight)


def _counter(
    name: str,
    text: str,
    labels: list[str],
    counts: Mapping[str, float] | Mapping[tuple[str, str], float],
) -> CounterMetricFamily:
    """Return a counter. A key of `counts` is the value of its one label, or the values of all."""
    family = CounterMetricFamily(name, text, labels=labels)
    for key, count in counts.items():
        family.add_metric([key] if isinstance(key, str) else list(key), count)
    return family


@router.get("/metrics")
async def metrics(services: Shared) -> Response:
    """Return the metrics as Prometheus reads them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(GatewayCollector(services))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
