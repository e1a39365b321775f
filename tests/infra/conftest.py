"""A gateway over real HTTP in front of a model server for tests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra.config.settings import Settings
from infra.gateway.settings import GatewaySettings, UpstreamSettings
from infra.installation.apps import gateway_app
from schemas.endpoints import Endpoint
from schemas.envelope import AnyEvent
from schemas.routes import Route, RouteEvent, RouteTarget
from schemas.serialization import decode_all
from schemas.topics import ROUTES, Topic
from streams.processors.promotion_state import baseline_route
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from streams.storage.records import Outgoing
from tests.conftest import serving
from tests.infra.upstream import Upstream
from tests.waiting import eventually

T = TypeVar("T", bound=AnyEvent)

MODELS = (
    *("tiny", "clumsy", "hopeless", "plain", "overloaded", "failing"),
    *("gibberish", "slow", "detailed", "cut-off", "half", "endless"),
)


@dataclass
class Gateway:
    """A running gateway."""

    url: str
    settings: Settings
    http: httpx.Client

    def chat(
        self, model: str = "tiny", headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
        return self.http.post("/v1/chat/completions", json=body, headers=headers or {})

    def health(self) -> Any:
        return self.http.get("/healthz").json()

    def events(self, topic: Topic, kind: type[T]) -> list[T]:
        """Return what is on a topic, in order of appending."""
        with EmbeddedLog(self.settings.log_path) as log:
            records = sorted(read_all(log, topic.name), key=lambda record: record.sequence)
            return [event for record in records for event in decode_all(kind, record.value)]

    def soon(self, topic: Topic, kind: type[T], count: int = 1) -> list[T]:
        """Return what is on a topic once there is this much: spans are written after the answer."""

        def enough() -> list[T]:
            found = self.events(topic, kind)
            return found if len(found) >= count else []

        return eventually(enough, f"{count} events on {topic.name}")


def model_route(name: str, url: str, version: str = "v1", **endpoint: Any) -> Route:
    target = RouteTarget(
        version=version, endpoint=Endpoint(base_url=f"{url}/v1", model=name, **endpoint)
    )
    return Route(name=name, kind="model", targets=[target])


def publish(log_path: Path, *routes: Route) -> None:
    with EmbeddedLog(log_path) as log:
        log.append(
            [
                Outgoing.of(ROUTES, route.name, RouteEvent(payload=route)).record()
                for route in routes
            ]
        )


@contextmanager
def running_gateway(settings: Settings) -> Iterator[Gateway]:
    with serving(gateway_app(settings)) as url, httpx.Client(base_url=url, timeout=20) as http:
        yield Gateway(url, settings, http)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        gateway=GatewaySettings(
            upstream_timeout_s=0.5,
            upstream=UpstreamSettings(
                retries=0, breaker_failures=3, breaker_open_s=0.5, health_interval_s=0.1
            ),
            max_body_bytes=100_000,
            conversation_idle_s=0.5,
        ),
    )


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def upstream_url(upstream: Upstream) -> Iterator[str]:
    with serving(upstream.app) as url:
        yield url


@pytest.fixture
def gateway(settings: Settings, upstream_url: str) -> Iterator[Gateway]:
    """A gateway that serves the test server's models, a model that is not there, and a policy."""
    publish(
        settings.log_path,
        *(model_route(name, upstream_url) for name in MODELS),
        model_route("absent", "http://127.0.0.1:9"),
        model_route("keyed", upstream_url, api_key_env="TEST_MODEL_KEY"),
        baseline_route("supervisor-policy"),
    )
    with running_gateway(settings) as running:
        yield running


Publish = Callable[..., None]


def metrics_of(text: str, name: str) -> list[tuple[dict[str, str], float]]:
    """Return labels and value of a metric's samples, read as Prometheus reads them."""
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]
