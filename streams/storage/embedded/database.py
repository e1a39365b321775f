"""The SQLite file of the embedded log: how it is opened, and its transactions."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from schemas.topics import TOPICS
from streams.storage.errors import LogUnavailableError, LogUnreadableError

VERSION = 1
BUSY_TIMEOUT_S = 30.0
CHECKPOINT_PAGES = 8000
"""Size of the write-ahead log (32 MB) at which it is moved into the file: states written again and
again move once.
"""

Durability = Literal["process", "power"]
"""What a committed transaction survives: the death of the process, or of the machine."""


def open_database(
    path: Path, durability: Durability, busy_timeout_s: float = BUSY_TIMEOUT_S
) -> sqlite3.Connection:
    """Open the file, creating it with all topics when it is not there.

    Raises:
        LogUnavailableError: it cannot be opened or is locked.
        LogUnreadableError: it is not an Everloop log, or a newer one.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # isolation_level=None: `transaction` alone begins and ends transactions.
        connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None)
    except (OSError, sqlite3.OperationalError) as error:
        raise LogUnavailableError(f"cannot open the log {path}: {error}") from error
    try:
        _use_wal(connection, busy_timeout_s)
        # In WAL mode, NORMAL keeps commits when the process dies; only FULL keeps them in a power
        # cut.
        connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        # Two processes may open a new file at once; the second waits here and finds it prepared.
        with transaction(connection):
            _prepare(connection, path)
    except sqlite3.OperationalError as error:
        connection.close()
        raise LogUnavailableError(f"cannot open the log {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        connection.close()
        raise LogUnreadableError(
            f"{path} is not an Everloop log ({error}); choose another path with `log`"
        ) from error
    except LogUnreadableError:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection, busy_timeout_s: float) -> None:
    """Switch to write-ahead logging.

    SQLite does not wait here if another connection is switching: it fails at once. So this tries
    again.
    """
    for attempt in Retrying(
        retry=retry_if_exception_type(sqlite3.OperationalError),
        stop=stop_after_delay(busy_timeout_s),
        wait=wait_fixed(0.01),
        reraise=True,
    ):
        with attempt:
            connection.execute("PRAGMA journal_mode = WAL")


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise LogUnreadableError(
            f"{path} was written by a newer Everloop (log version {version}, this one reads"
            f" {VERSION})"
        )
    if version == 0:
        # Version 0 is an empty file, or the file of a program that sets no version.
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise LogUnreadableError(
                f"{path} is another program's SQLite file; choose another path with `log`"
            )
        statements = (Path(__file__).parent / "schema.sql").read_text()
        # Not `executescript`: it would commit the transaction around this first.
        for statement in statements.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
    # At each opening: a newer version may have more topics.
    connection.executemany(
        "INSERT INTO topics (name, partitions) VALUES (?, ?) ON CONFLICT (name) DO NOTHING",
        [(topic.name, topic.partitions) for topic in TOPICS.values()],
    )


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the block in one write transaction; any exception rolls it back."""
    # Take the write lock now: a lock taken at the first write could fail after the reads.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the block's reads on one state of the file, whatever others commit meanwhile."""
    # A transaction has one snapshot already, and SQLite does not nest them.
    if connection.in_transaction:
        yield
        return
    # Deferred: readers take no lock, so they never make a writer wait.
    connection.execute("BEGIN DEFERRED")
    try:
        yield
    finally:
        connection.execute("COMMIT")
