"""The analytics process: it owns the store, keeps it up to date, and answers reports from it."""

import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI

from infra.analytics.client import connect
from infra.analytics.report import Report, build_report
from infra.analytics.sink import follow
from infra.config import Settings
from infra.logs import open_log

log_event = structlog.get_logger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """Return the analytics application."""
    stop = threading.Event()
    local = threading.local()

    def client() -> Any:
        """Return this thread's client: one shared by threads would raise."""
        if not hasattr(local, "client"):
            local.client = connect(settings.analytics_dsn)
        return local.client

    def run() -> None:
        try:
            follow(lambda: open_log(settings), client, stop)
        except Exception:
            log_event.exception("the sink failed, stopping so that the supervisor starts it again")
            os.kill(os.getpid(), signal.SIGTERM)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        thread = threading.Thread(target=run, name="sink")
        thread.start()
        yield
        stop.set()
        thread.join()

    app = FastAPI(title="Everloop analytics", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/report")
    def report() -> Report:
        return build_report(client())

    return app
