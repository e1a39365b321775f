"""The gateway's application: everything wired in one place."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from infra.gateway.apis import (
    feedback,
    lightning,
    lightning_proxy,
    metrics,
    openai,
    operations,
    rollouts,
    stand_in,
    traces,
)
from infra.gateway.apis.direct import Direct
from infra.gateway.calls.rollouts import end_conversations
from infra.gateway.http import problems
from infra.gateway.http.access import KeyRing
from infra.gateway.http.guard import Shell
from infra.gateway.http.limits import Limits
from infra.gateway.http.readers import Readers
from infra.gateway.http.threads import share_interpreter
from infra.gateway.models.servers import Upstreams
from infra.gateway.records.export import SpanExport
from infra.gateway.records.publisher import Publisher
from infra.gateway.records.redaction import Redactor
from infra.gateway.routes.table import RoutingTable
from infra.gateway.settings import GatewaySettings
from infra.gateway.state.conversations import Conversations
from infra.gateway.state.follower import GatewayFollower
from infra.gateway.state.lightning import LightningState
from infra.gateway.state.services import OpenLog, Services
from learners.policies import BUILT_IN, PolicyLoader
from schemas.endpoints import Endpoint
from schemas.routes import STAND_IN
from schemas.topics import USAGE
from streams.storage.artifacts import ArtifactReader
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import Log
from streams.views.keys import Keys

APIS = (
    openai,
    feedback,
    metrics,
    operations,
    rollouts,
    traces,
    lightning,
    lightning_proxy,
    stand_in,
)
# Seconds for which the log may be locked or away before events go to the spool. Whoever waits for a
# durable reward or decision waits as long.
SPOOL_AFTER_S = 2.0

TELL_USAGE_EVERY_S = 1.0


def create_app(
    gateway: GatewaySettings,
    open_log: OpenLog,
    spool: Path,
    artifacts: ArtifactReader,
    policies: PolicyLoader = BUILT_IN,
    stands_in: bool = False,
) -> FastAPI:
    """Return the gateway.

    Args:
        open_log: opens the log. Each thread opens its own connection.
        spool: file for the events that wait while the log cannot be written.
        artifacts: store of the policies that the gateway serves.
        policies: loads those policies.
        stands_in: whether the stand-in answers while no model is configured.

    Raises:
        LogUnreadableError, LogUnavailableError: the spool cannot be used.
    """
    stand_in_server = _stand_in(gateway) if stands_in else None
    table = RoutingTable(artifacts, policies, stand_in_server)
    parts = _Parts(gateway, open_log, spool, table)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.services = services = await parts.start()
        yield
        await parts.stop(services)

    app = FastAPI(title="Everloop gateway", lifespan=lifespan, docs_url=None, redoc_url=None)
    problems.install(app)
    for module in APIS:
        app.include_router(module.router)
    # The middleware that is added last sees a request first: CORS, then the shell, then `Direct`.
    app.add_middleware(Direct, handlers=openai.HANDLERS)
    app.add_middleware(Shell, body_timeout_s=gateway.body_timeout_s, access_log=gateway.access_log)
    if gateway.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(gateway.cors_origins),
            allow_methods=["GET", "POST", "PATCH", "PUT", "DELETE"],
            allow_headers=["*"],
        )
    return app


class _Parts:
    """The gateway's parts: made before it serves, started and stopped with it."""

    def __init__(
        self, gateway: GatewaySettings, open_log: OpenLog, spool: Path, table: RoutingTable
    ) -> None:
        def open_for_writing() -> Log:
            return open_log("power", SPOOL_AFTER_S)

        def open_spool() -> EmbeddedLog:
            return EmbeddedLog(spool, "power")

        # A spool that cannot be used is an error at start, not later when the log is away.
        open_spool().close()
        self._gateway = gateway
        self._open_log = open_log
        self._publisher = Publisher(open_for_writing, open_spool, gateway.spool_max_bytes)
        self._table = table
        self._keys = Keys()
        self._limits = Limits()
        self._conversations = Conversations(gateway.conversation_idle_s)
        self._lightning = LightningState()
        self._follower = GatewayFollower(
            table, self._keys, self._limits, self._conversations, self._lightning, open_log
        )
        self._readers = Readers()
        self._upstreams = Upstreams(gateway.upstream, gateway.upstream_timeout_s)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> Services:
        """Start every part, and return what the routes share."""
        gateway = self._gateway
        share_interpreter()
        # The publisher first: what follows may hand it events.
        self._publisher.start()
        self._follower.start()
        export = SpanExport(gateway.export_traces_to) if gateway.export_traces_to else None
        await self._upstreams.start()
        services = Services(
            gateway,
            self._open_log,
            self._publisher,
            self._table,
            KeyRing(gateway.keys_required, self._keys),
            self._limits,
            self._conversations,
            self._upstreams,
            Redactor(gateway.redaction),
            self._lightning,
            self._readers,
            export,
        )
        # Four looks in each idle time, so that a conversation ends at most a quarter too late.
        look_every_s = min(1.0, gateway.conversation_idle_s / 4)
        self._tasks = [
            asyncio.create_task(end_conversations(services, look_every_s)),
            asyncio.create_task(_tell_usage(services)),
            asyncio.create_task(services.heartbeat.run()),
        ]
        return services

    async def stop(self, services: Services) -> None:
        """Stop every part; those that hand events to the publisher stop before it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await services.close()
        await self._upstreams.close()
        self._readers.close()
        self._follower.close()
        _hand_over_usage(services)
        self._publisher.close()


def _stand_in(gateway: GatewaySettings) -> Endpoint:
    """Return the stand-in as a model server.

    The gateway asks itself for it, over HTTP. So a call of the stand-in is routed, streamed and
    recorded like a call of any model.
    """
    host = "127.0.0.1" if gateway.host in ("0.0.0.0", "::") else gateway.host  # noqa: S104
    return Endpoint(base_url=f"http://{host}:{gateway.port}{stand_in.PATH}", model=STAND_IN)


async def _tell_usage(services: Services) -> None:
    while True:
        await asyncio.sleep(TELL_USAGE_EVERY_S)
        _hand_over_usage(services)


def _hand_over_usage(services: Services) -> None:
    for event in services.limits.take_changes():
        usage = event.payload
        services.hand_over(USAGE, f"{usage.key_id}/{usage.month}/{usage.counter}", event)
