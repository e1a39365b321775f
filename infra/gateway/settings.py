"""Settings of the gateway, and of the model servers behind it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from infra.gateway.records.redaction import RedactionConfig
from infra.runtime.section import Section
from infra.serving.settings import APP_SCHEME
from schemas.endpoints import Endpoint


class UpstreamSettings(Section):
    """How the gateway asks model servers.

    Attributes:
        connect_timeout_s: longest wait for a connection.
        retries: tries after the first one, on each server.
        backoff_s, most_backoff_s: the wait before try n is random, up to `backoff_s` * 2^n and
            `most_backoff_s` (full jitter,
            https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). If a
            server's `retry-after` is longer, up to 10 s, it counts.
        breaker_failures: after this many failures in a row, a server gets no calls.
        breaker_open_s: seconds without calls. Then one call, or a health check, tries the server.
        health_interval_s: seconds between two health checks of servers that get no calls.
    """

    connect_timeout_s: float = Field(default=5.0, gt=0)
    retries: int = Field(default=2, ge=0, le=10)
    backoff_s: float = Field(default=0.25, gt=0)
    most_backoff_s: float = Field(default=4.0, gt=0)
    breaker_failures: int = Field(default=5, ge=1)
    breaker_open_s: float = Field(default=10.0, gt=0)
    health_interval_s: float = Field(default=5.0, gt=0)


class GatewaySettings(Section):
    """The gateway.

    Attributes:
        port: 0 takes a free one.
        keys: whether calls need an API key; `auto` asks for one unless `host` is loopback.
        upstream_timeout_s: longest silence of a model server.
        upstream: retries, backoff and circuit breakers.
        max_body_bytes: larger requests are refused.
        body_timeout_s: longest silence while a request is received.
        holdout: share of rollouts, in [0, 1), that the gateway holds out (split `validation`) if
            the agent names no split. Promotion judges new versions by them; no learner learns
            from them. 0 holds none out.
        conversation_idle_s: a rollout that the gateway began ends after this silence.
        tool_calls: what to do with answers whose tool calls the caller's JSON Schemas do not
            allow. `pass`: pass them on. `repair`: tell the model, and ask once more (chat
            completions only). `reject`: answer 502. Streams always pass, because they cannot be
            taken back. All are counted.
        redaction: what is removed from events before they are written.
        cors_origins: web pages that may call from browsers; none by default.
        export_traces_to: OTLP/HTTP endpoint that gets all spans too, such as
            `http://collector:4318/v1/traces`.
        access_log: whether each request is a line of the log.
        lightning_model: logical model behind Agent Lightning's proxy, if its trainer registered
            none itself.
        train_temperature, val_temperature: temperatures that the proxy sets in its two modes.
        lightning_rewards: worst and best reward that its agents give; mapped to 0 and 1.
        spool: file in which events wait while the log cannot be written.
        spool_max_bytes: a spool that holds more takes no new events. Older events stay.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8700, ge=0, le=65_535)
    keys: Literal["required", "optional", "auto"] = "auto"
    upstream_timeout_s: float = Field(default=120.0, gt=0)
    upstream: UpstreamSettings = UpstreamSettings()
    max_body_bytes: int = Field(default=16 * 1024 * 1024, gt=0)
    body_timeout_s: float = Field(default=30.0, gt=0)
    holdout: float = Field(default=0.2, ge=0, lt=1)
    conversation_idle_s: float = Field(default=300.0, gt=0)
    tool_calls: Literal["pass", "repair", "reject"] = "pass"
    redaction: RedactionConfig = RedactionConfig()
    cors_origins: tuple[str, ...] = ()
    export_traces_to: str | None = None
    access_log: bool = False
    lightning_model: str | None = None
    train_temperature: float = Field(default=1.0, ge=0)
    val_temperature: float = Field(default=0.7, ge=0)
    lightning_rewards: tuple[float, float] = (0.0, 1.0)
    spool: Path = Path("spool.db")
    spool_max_bytes: int = Field(default=2**30, gt=0)

    @property
    def keys_required(self) -> bool:
        """Whether calls need an API key."""
        if self.keys == "auto":
            return self.host not in ("127.0.0.1", "::1", "localhost")
        return self.keys == "required"


class ModelSettings(Endpoint):
    """The server behind a logical model.

    Attributes:
        fallbacks: servers that are asked in this order if it does not answer.
    """

    model_config = ConfigDict(extra="forbid")

    fallbacks: tuple[Endpoint, ...] = ()

    @property
    def app(self) -> str | None:
        """The name of the configured application that serves it; None if another server does."""
        if not self.base_url.startswith(APP_SCHEME):
            return None
        return self.base_url.removeprefix(APP_SCHEME).partition("/")[0]

    def endpoint(self, apps: Mapping[str, str]) -> Endpoint:
        """Return the server alone.

        Args:
            apps: where each configured application answers, such as `http://127.0.0.1:8701`.

        Raises:
            KeyError: its application does not run.
        """
        endpoint = Endpoint.model_validate(self.model_dump(exclude={"fallbacks"}))
        if self.app is None:
            return endpoint
        address = self.base_url.replace(f"{APP_SCHEME}{self.app}", apps[self.app], 1)
        return endpoint.model_copy(update={"base_url": address})
