"""The servers of an installation, each handed its own settings and nothing of the others'."""

from functools import partial

from fastapi import FastAPI

from infra.config.settings import Settings
from infra.installation.log import open_log
from infra.installation.processors import all_processors
from learners.settings import policy_loader
from streams.storage.artifacts import ArtifactStore


def gateway_app(settings: Settings) -> FastAPI:
    """Return the gateway.

    Raises:
        LogUnreadableError, LogUnavailableError: the spool cannot be used.
    """
    from infra.gateway.app import create_app  # no process loads what only another needs

    return create_app(
        settings.gateway,
        partial(open_log, settings),
        settings.spool_path,
        ArtifactStore(settings.artifacts_dir),
        policy_loader(settings.learners),
    )


def analytics_app(settings: Settings) -> FastAPI:
    """Return what keeps the analytics and answers from them."""
    from infra.analytics.app import create_app

    return create_app(settings.analytics_dsn, partial(open_log, settings), all_processors(settings))
