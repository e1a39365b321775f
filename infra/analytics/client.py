"""Connecting to ClickHouse: the embedded engine (chDB) or a server, through one client."""

from pathlib import Path
from typing import Any

import clickhouse_connect

from infra.runtime.errors import ConfigError

CHDB = "chdb://"
DATABASE = "everloop"


def connect(dsn: str) -> Any:
    """Return a client. One client belongs to one thread, and one process may open an embedded
    store.

    Args:
        dsn: `chdb:///path`, or `clickhouse://user:password@host:port/database`.

    Raises:
        ConfigError: the store cannot be opened, or the server does not answer.
    """
    if dsn.startswith(CHDB):
        path = Path(dsn.removeprefix(CHDB))
        try:
            path.mkdir(parents=True, exist_ok=True)
            return clickhouse_connect.get_client(interface="chdb", path=str(path))
        except Exception as error:  # the engine raises plain RuntimeError and its own kinds
            raise ConfigError(
                f"cannot open the analytics store {path}: {_first_line(error)};"
                " one process may open it, so stop what else uses it, or ask the running one"
                " (`everloop report`)"
            ) from error
    try:
        return clickhouse_connect.get_client(dsn=dsn)
    except Exception as error:
        raise ConfigError(
            f"no ClickHouse at {_without_password(dsn)}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _without_password(dsn: str) -> str:
    scheme, _, rest = dsn.partition("://")
    # From the last `@`: a password may hold one.
    return f"{scheme}://{rest.rpartition('@')[2]}"
