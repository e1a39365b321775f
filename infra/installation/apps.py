"""The servers of an installation, each handed its own settings and nothing of the others'."""

from functools import partial
from typing import Any

from fastapi import FastAPI

from infra.config.settings import Settings
from infra.installation.log import open_log
from infra.installation.processors import all_processors
from infra.runtime.errors import ConfigError
from infra.serving.settings import AppSettings
from learners.references import (
    FOREIGN_ERRORS,
    UnknownReferenceError,
    one_line,
    resolve_plain,
)
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
        stands_in=not settings.models,
    )


def analytics_app(settings: Settings) -> FastAPI:
    """Return the analytics application."""
    from infra.analytics.app import create_app

    return create_app(settings.analytics_dsn, partial(open_log, settings), all_processors(settings))


def load_app(name: str, settings: AppSettings) -> Any:
    """Return an application of the user's (ASGI).

    Raises:
        ConfigError: the setting names no function, or the function fails or returns nothing that
            can be called.
    """
    where = f"apps.{name}.app"
    try:
        made = resolve_plain(settings.app)()
    except UnknownReferenceError as error:
        raise ConfigError(f"{where}: {error}") from error
    except FOREIGN_ERRORS as error:
        raise ConfigError(f"{where}: {settings.app}() failed: {one_line(error)}") from error
    if not callable(made):
        raise ConfigError(
            f"{where}: {settings.app}() must return an ASGI application, not {made!r}"
        )
    return made
