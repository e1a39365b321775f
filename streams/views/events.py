"""The events of topics in the order they were appended; a record that cannot be read is skipped."""

from collections.abc import Iterator

import structlog

from schemas.envelope import AnyEvent
from schemas.serialization import UndecodableError, decode_all
from schemas.topics import TOPICS, Topic
from streams.storage.log import Log, read_all
from streams.storage.records import Record

logger = structlog.get_logger(__name__)


def events_of(record: Record) -> list[AnyEvent]:
    """Return a record's events. A tombstone has none; an unreadable record has none and is
    logged.
    """
    if record.value is None:
        return []
    try:
        return list(decode_all(TOPICS[record.topic].event, record.value))
    except UndecodableError as error:
        logger.error("record skipped", record=record.position, error=str(error))
        return []


def events_on(log: Log, *topics: Topic) -> Iterator[AnyEvent]:
    """Yield the events of topics in the order they were appended.

    The embedded log numbers all records. Kafka's partitions have no common order, so there the
    time of appending decides, and within a millisecond the order in which `topics` are given.
    """
    places = {topic.name: place for place, topic in enumerate(topics)}
    records = [record for topic in topics for record in read_all(log, topic.name)]
    records.sort(key=lambda r: (r.sequence, r.timestamp_ms, places[r.topic], r.partition, r.offset))
    for record in records:
        yield from events_of(record)
