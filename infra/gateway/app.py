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

SPOOL_AFTER_S = 2.0
"""How long the log may be locked or away before events are spooled."""

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
        open_log: opens the log, for each thread of its own.
        spool: file of the events that wait while the log cannot be written.
        artifacts: where the policies that it serves lie.
        policies: loads them.
        stands_in: whether the stand-in answers while there is no model.

    Raises:
        LogUnreadableError, LogUnavailableError: the spool cannot be used.
    """

    def open_for_writing() -> Log:
        return open_log("power", SPOOL_AFTER_S)

    def open_spool() -> EmbeddedLog:
        return EmbeddedLog(spool, "power")

    open_spool().close()  # a spool that cannot be used is an error at start, not when it is needed
    publisher = Publisher(open_for_writing, open_spool, gateway.spool_max_bytes)
    table = RoutingTable(artifacts, policies, _stand_in(gateway) if stands_in else None)
    keys = Keys()
    limits = Limits()
    conversations = Conversations(gateway.conversation_idle_s)
    lightning_state = LightningState()
    follower = GatewayFollower(table, keys, limits, conversations, lightning_state, open_log)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        publisher.start()
        follower.start()
        export = SpanExport(gateway.export_traces_to) if gateway.export_traces_to else None
        upstreams = Upstreams(gateway.upstream, gateway.upstream_timeout_s)
        await upstreams.start()
        redactor = Redactor(gateway.redaction)
        services = Services(
            gateway,
            open_log,
            publisher,
            table,
            KeyRing(gateway.keys_required, keys),
            limits,
            conversations,
            upstreams,
            redactor,
            lightning_state,
            export,
        )
        app.state.services = services
        tasks = [
            asyncio.create_task(
                end_conversations(services, min(1.0, gateway.conversation_idle_s / 4))
            ),
            asyncio.create_task(_tell_usage(services)),
        ]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await services.close()
        await upstreams.close()
        follower.close()
        _hand_over_usage(services)
        publisher.close()

    app = FastAPI(title="Everloop gateway", lifespan=lifespan, docs_url=None, redoc_url=None)
    problems.install(app)
    for module in (openai, feedback, metrics, operations, rollouts, traces, lightning, stand_in):
        app.include_router(module.router)
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


def _stand_in(gateway: GatewaySettings) -> Endpoint:
    """Return the stand-in as a model server: the gateway itself, so that it is called, recorded and
    streamed like any other.
    """
    host = "127.0.0.1" if gateway.host in ("0.0.0.0", "::") else gateway.host  # noqa: S104
    return Endpoint(base_url=f"http://{host}:{gateway.port}{stand_in.PATH}", model=STAND_IN)


async def _tell_usage(services: Services) -> None:
    while True:
        await asyncio.sleep(TELL_USAGE_EVERY_S)
        _hand_over_usage(services)


def _hand_over_usage(services: Services) -> None:
    for event in services.limits.untold():
        usage = event.payload
        services.hand_over(USAGE, f"{usage.key_id}/{usage.month}/{usage.counter}", event)
