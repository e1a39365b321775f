"""The gateway's application: everything wired in one place."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from infra.config import Settings
from infra.gateway import chat, feedback, metrics, operations, problems, rollouts, traces
from infra.gateway.publishing import Publisher
from infra.gateway.routing import RouteFollower, RoutingTable
from infra.gateway.services import Services
from infra.logs import open_log
from streams.artifacts import ArtifactStore
from streams.embedded.log import EmbeddedLog
from streams.log import Log

SPOOL_AFTER_S = 2.0
"""How long the log may be locked or away before events are spooled."""


def create_app(settings: Settings) -> FastAPI:
    """Return the gateway.

    Raises:
        LogUnreadableError, LogUnavailableError: the spool cannot be used.
    """

    def open_for_writing() -> Log:
        return open_log(settings, "power", SPOOL_AFTER_S)

    def open_spool() -> EmbeddedLog:
        return EmbeddedLog(settings.spool_path, "power")

    open_spool().close()  # a spool that cannot be used is an error at start, not when it is needed
    publisher = Publisher(open_for_writing, open_spool, settings.gateway.spool_max_bytes)
    table = RoutingTable(ArtifactStore(settings.artifacts_dir))
    follower = RouteFollower(table, lambda: open_log(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        publisher.start()
        follower.start()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        async with httpx.AsyncClient(timeout=settings.gateway.upstream_timeout_s, limits=limits) as http:
            app.state.services = Services(settings, publisher, table, http)
            yield
        follower.close()
        publisher.close()

    app = FastAPI(title="Everloop gateway", lifespan=lifespan, docs_url=None, redoc_url=None)
    problems.install(app)
    for module in (chat, feedback, metrics, operations, rollouts, traces):
        app.include_router(module.router)
    return app
