"""The Faust runner: the same processors on Kafka, one Faust app (a consumer group) for each.

Faust's own habits are worked around where they lose events (measured on faust-streaming 0.15.3):

- an exception in a Faust function acknowledges the event, so none ever leaves `KafkaStage.take`;
- values are taken as raw bytes and decoded inside, because what Faust cannot decode it commits past;
- the acknowledgement of every output and every state is awaited before the next event, because Faust's own flush gives
  up after 0.1 s, and its tables send their changelog without waiting;
- a table's partition is that of the event in hand, which a timer has not: states know their partition;
- after a rebalance it may stop delivering a partition, which is found and mended (`streams.kafka.stalls`);
- delivery is at least once; it counts once because a state knows what it contains (`streams.kafka.stored_state`).
"""

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import faust

from streams.kafka.log import MAX_RECORD_BYTES
from streams.kafka.stage import KafkaStage
from streams.kafka.stalls import CHECK_EVERY_S, StalledPartitions
from streams.kafka.stored_state import TABLE, StoredState
from streams.processor import Processor
from streams.records import NewRecord, Record

S = TypeVar("S")
DEADLINES_EVERY_S = 1.0
COMMIT_EVERY_S = 1.0
DEFAULT_LEASE_S = 10.0
LEAST_SESSION_S = 6.0


class FaustStates:
    """A processor's states in a Faust table, whose changelog is written before the table says so."""

    def __init__(self, app: Any, table: Any) -> None:
        self._app = app
        self._table = table

    def get(self, key: str) -> bytes | None:
        """Return what is stored under a key."""
        found: bytes | None = self._table.get(key)
        return found

    def items(self) -> Iterable[tuple[str, bytes]]:
        """Return the keys of this worker's partitions; the table may still hold those of others."""
        mine = {place.partition for place in self._app.assignor.assigned_actives()}
        return [(key, value) for key, value in self._table.items() if StoredState.decode(value).partition in mine]

    async def store(self, key: str, value: bytes, partition: int) -> None:
        """Write a state to the changelog, and to the table when Kafka has it."""
        await asyncio.shield(self._table.send_changelog(partition, key, value))  # Faust's to end, not ours
        self._table.data[key] = value


def create_app(broker: str, processor: Processor[S], data_dir: Path, lease_s: float = DEFAULT_LEASE_S) -> Any:
    """Return the Faust app of one processor.

    Args:
        broker: `kafka://host:port[,host:port]`.
        data_dir: where Faust keeps what it needs locally.
        lease_s: how long a dead worker's partitions stay taken; at least 6, Kafka's own least session timeout.
    """
    session_s = max(LEAST_SESSION_S, lease_s)
    partitions = processor.topics[0].partitions
    name = processor.group
    folder = data_dir / "faust" / name
    folder.mkdir(parents=True, exist_ok=True)
    app = faust.App(
        name,
        broker=broker.replace(",", ";kafka://"),
        broker_commit_interval=COMMIT_EVERY_S,
        broker_session_timeout=session_s,
        broker_heartbeat_interval=session_s / 3,
        store="memory://",
        datadir=str(folder),
        key_serializer="raw",
        value_serializer="raw",
        topic_partitions=partitions,
        topic_disable_leader=True,
        topic_allow_declare=False,
        producer_acks=-1,
        producer_max_request_size=MAX_RECORD_BYTES,
        consumer_max_fetch_size=MAX_RECORD_BYTES,
        web_enabled=False,
        processing_guarantee="at_least_once",
    )
    source = app.topic(
        *(topic.name for topic in processor.topics),
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
        partitions=partitions,
    )
    table = app.Table(TABLE, key_type=str, value_type=bytes, partitions=partitions)

    async def send(record: NewRecord) -> None:
        topic = app.topic(record.topic, key_serializer="raw", value_serializer="raw")
        sent = await topic.send(key=record.key, value=record.value, headers=list(record.headers))
        await asyncio.shield(sent)

    stage = KafkaStage(processor, FaustStates(app, table), send)

    async def consume(stream: Any) -> None:
        async for event in stream.events():
            await stage.take(_record(event.message))

    app.agent(source, name=f"{name}.consume")(consume)
    app.timer(DEADLINES_EVERY_S, name=f"{name}.deadlines")(stage.expire_due)
    stalls = StalledPartitions(app, {topic.name for topic in processor.topics}, lambda: stage.idle)
    app.timer(CHECK_EVERY_S, name=f"{name}.stalls")(stalls.mend)
    return app


def run_app(
    broker: str, processors: Sequence[Processor[Any]], data_dir: Path, lease_s: float = DEFAULT_LEASE_S
) -> None:
    """Run the apps of several processors in this process until SIGINT or SIGTERM."""
    first, *others = (create_app(broker, processor, data_dir, lease_s) for processor in processors)
    faust.Worker(first, *others, loglevel="WARN", quiet=True).execute_from_commandline()


def _record(message: Any) -> Record:
    headers = message.headers.items() if isinstance(message.headers, dict) else (message.headers or ())
    return Record(
        message.topic,
        message.partition,
        message.offset,
        int(message.timestamp * 1000),
        message.key,
        message.value,
        tuple((str(name), bytes(value)) for name, value in headers),
    )
