"""The analytics process. It owns the store, keeps it up to date, and answers reports and metrics
from it.
"""

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST

from infra.analytics.client import connect
from infra.analytics.page import as_page
from infra.analytics.report import Report, build_report
from infra.analytics.sink import follow
from infra.analytics.tables import create_tables
from infra.runtime.threads import vital_thread
from streams.processing.processor import Processor
from streams.runners.lag import lag_metrics
from streams.storage.log import Log


def create_app(
    dsn: str, open_log: Callable[[], Log], processors: Sequence[Processor[Any]]
) -> FastAPI:
    """Return the analytics application.

    Args:
        dsn: where analytics are kept; see `AnalyticsSettings.location`.
        open_log: opens the log, for each thread of its own.
        processors: whose lag `/metrics` tells.
    """
    stop = threading.Event()
    # FastAPI runs plain functions in a pool of threads.
    local = threading.local()

    def client() -> Any:
        """Return this thread's client: one shared by threads would raise."""
        if not hasattr(local, "client"):
            local.client = connect(dsn)
        return local.client

    def run() -> None:
        follow(open_log, client, stop)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        create_tables(client())  # before the first report, which would miss them
        thread = vital_thread("sink", run)
        thread.start()
        yield
        # The sink inserts what is left before it ends.
        stop.set()
        thread.join()

    app = FastAPI(title="Everloop analytics", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/report")
    def report() -> Report:
        return build_report(client())

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return as_page(build_report(client()))

    @app.get("/metrics")
    def metrics() -> Response:
        with open_log() as log:
            return Response(lag_metrics(log, processors), media_type=CONTENT_TYPE_LATEST)

    return app
