"""What the gateway tells Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from collections.abc import Iterator

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.gateway.http.bodies import BoundedRoute
from infra.gateway.state.services import Services, Shared

router = APIRouter(route_class=BoundedRoute)


class GatewayCollector(Collector):
    """Reads the gateway's own counts when it is asked, so that counting costs a request nothing."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        status = self._services.publisher.status
        accepted = CounterMetricFamily(
            "everloop_events_accepted", "Records handed over for the log.", labels=["topic"]
        )
        lost = CounterMetricFamily(
            "everloop_events_lost", "Records that nothing could keep.", labels=["topic"]
        )
        for family, counts in ((accepted, status.accepted), (lost, status.lost)):
            for topic, count in counts.items():
                family.add_metric([topic], count)
        requests = CounterMetricFamily(
            "everloop_model_requests", "Model calls by outcome.", labels=["outcome"]
        )
        done = self._services.counts
        for outcome, count in done.requests.items():
            requests.add_metric([outcome], count)
        tokens = CounterMetricFamily(
            "everloop_tokens", "Tokens of model calls.", labels=["model", "direction"]
        )
        for (model, direction), count in done.tokens.items():
            tokens.add_metric([model, direction], count)
        cost = CounterMetricFamily(
            "everloop_cost", "Cost of model calls, in the unit of the prices.", labels=["model"]
        )
        for model, amount in done.cost.items():
            cost.add_metric([model], amount)
        invalid = CounterMetricFamily(
            "everloop_invalid_tool_calls",
            "Tool calls that the caller's schemas do not allow.",
            labels=["model", "version"],
        )
        for (model, version), count in done.invalid_tool_calls.items():
            invalid.add_metric([model, version], count)
        shadows = CounterMetricFamily(
            "everloop_shadow_requests", "Copies of calls by outcome.", labels=["outcome"]
        )
        for outcome, count in done.shadows.items():
            shadows.add_metric([outcome], count)
        up = GaugeMetricFamily(
            "everloop_endpoint_up", "0 while a server is left alone.", labels=["endpoint"]
        )
        inflight = GaugeMetricFamily(
            "everloop_endpoint_inflight", "Calls under way.", labels=["endpoint"]
        )
        for endpoint, breaker in self._services.upstreams.breakers.items():
            up.add_metric([endpoint], breaker.open_until == 0.0)
            inflight.add_metric([endpoint], breaker.inflight)
        yield from (accepted, lost, requests, tokens, cost, invalid, shadows, up, inflight)
        yield GaugeMetricFamily(
            "everloop_spooled_events", "Records that wait in the spool.", status.spooled
        )
        yield GaugeMetricFamily(
            "everloop_log_writable", "1 while the log takes records.", status.error is None
        )
        yield CounterMetricFamily(
            "everloop_switches",
            "Routes that changed what they serve.",
            self._services.routing.switches,
        )


@router.get("/metrics")
async def metrics(services: Shared) -> Response:
    """Return the metrics as Prometheus reads them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(GatewayCollector(services))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
