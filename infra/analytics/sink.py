"""The sink: records of the log into their tables, in batches; offsets are committed after the rows are in."""

import threading
from collections.abc import Callable
from typing import Any

import structlog

from infra.analytics.tables import TABLES, Table, create_tables
from schemas.serialization import UndecodableError, decode
from streams.embedded.log import EmbeddedLog
from streams.records import Record

GROUP = "analytics"
BATCH = 5000
EVERY_S = 1.0
log_event = structlog.get_logger(__name__)


class Sink:
    """Copies topics into tables. Rows of a batch that is inserted again are collapsed by the tables.

    Args:
        client: of the ClickHouse to write to, used from this sink's thread alone.
    """

    def __init__(self, log: EmbeddedLog, client: Any) -> None:
        self._log = log
        self._client = client
        create_tables(client)

    def run_once(self) -> int:
        """Insert up to a batch of what is new in each topic; return how many records that was."""
        return sum(self._copy(table) for table in TABLES)

    def catch_up(self) -> None:
        """Insert all that is on the log."""
        while self.run_once():
            pass

    def _copy(self, table: Table) -> int:
        topic = table.topic
        positions = self._log.committed(GROUP, [topic.name], range(topic.partitions))
        records = self._log.fetch(positions, BATCH)
        if not records:
            return 0
        rows = [row for record in records if (row := self._row(table, record)) is not None]
        if rows:
            self._client.insert(table.name, rows, column_names=table.column_names)
        with self._log.transaction():
            self._log.commit_within(GROUP, {(r.topic, r.partition): r.offset + 1 for r in records})
        return len(records)

    def _row(self, table: Table, record: Record) -> list[Any] | None:
        """Return a record's row; None for tombstones and for what a processor makes a dead letter."""
        if record.value is None:
            return None
        try:
            return table.values(record, decode(table.topic.event, record.value))
        except UndecodableError as error:
            log_event.warning("no row for an undecodable record", record=record.position, error=str(error))
            return None


def follow(open_log: Callable[[], EmbeddedLog], connect: Callable[[], Any], stop: threading.Event) -> None:
    """Keep the tables at the end of the log until `stop` is set, then insert what is left."""
    with open_log() as log:
        sink = Sink(log, connect())
        while not stop.wait(EVERY_S):
            sink.catch_up()
        sink.catch_up()
