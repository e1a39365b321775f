"""The sink: writes records into tables, in batches. Offsets are committed after the rows."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog

from infra.analytics.tables import TABLES, Table, create_tables
from schemas.serialization import UndecodableError, decode_all
from schemas.topics import PREFIX
from streams.storage.log import Log
from streams.storage.records import Record

GROUP = PREFIX + "analytics"
BATCH = 5000
WAIT_S = 0.5
EVERY_S = 0.5
logger = structlog.get_logger(__name__)


class Sink:
    """Copies topics into tables. Rows of a batch that is inserted again are collapsed by the
    tables.

    Args:
        client: of the ClickHouse to write to, used from this sink's thread alone.
    """

    def __init__(self, log: Log, client: Any) -> None:
        self._log = log
        self._client = client
        create_tables(client)
        # Asked for all topics at once, by the largest number of partitions.
        most = max(table.topic.partitions for table in TABLES)
        committed = log.committed(GROUP, [table.topic.name for table in TABLES], range(most))
        self._positions = {
            (table.topic.name, partition): committed[table.topic.name, partition]
            for table in TABLES
            for partition in range(table.topic.partitions)
        }

    def run_once(self, wait_s: float = 0.0) -> int:
        """Insert one batch of new records; wait for them up to `wait_s`. Return how many there
        were.
        """
        records = self._log.fetch(self._positions, BATCH, wait_s)
        if not records:
            return 0
        for table in TABLES:
            mine = (record for record in records if record.topic == table.topic.name)
            rows = [row for record in mine for row in self._rows(table, record)]
            if rows:
                self._client.insert(table.name, rows, column_names=table.column_names)
        read = {(record.topic, record.partition): record.offset + 1 for record in records}
        # After the rows: a crash in between inserts them again, and the tables count them once.
        self._log.commit(GROUP, read)
        self._positions |= read
        return len(records)

    def catch_up(self) -> None:
        """Insert all that is on the log."""
        while self.run_once():
            pass

    def _rows(self, table: Table, record: Record) -> list[list[Any]]:
        """Return a row for each event of a record. Tombstones and records that cannot be read have
        none.
        """
        if record.value is None:
            return []
        try:
            events = decode_all(table.topic.event, record.value)
        except UndecodableError as error:
            logger.warning(
                "no row for an undecodable record", record=record.position, error=str(error)
            )
            return []
        return [
            table.values(replace(record, index=index), event) for index, event in enumerate(events)
        ]


def follow(open_log: Callable[[], Log], connect: Callable[[], Any], stop: threading.Event) -> None:
    """Copy new records into the tables until `stop` is set, then insert the rest."""
    with open_log() as log:
        sink = Sink(log, connect())
        while not stop.is_set():
            sink.run_once(WAIT_S)
            # Let rows gather: each insert becomes a part on disk, whatever its size.
            stop.wait(EVERY_S)
        sink.catch_up()
