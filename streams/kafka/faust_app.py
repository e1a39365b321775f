"""The Faust runner: the same processors on Kafka, one Faust app (a consumer group) for each.

Faust's own habits are worked around where they lose events (measured on faust-streaming 0.15.3):

- an exception in a Faust function acknowledges the event, so none ever leaves `KafkaStage.take`;
- values are taken as raw bytes and decoded inside, because what Faust cannot decode it commits past;
- every output's acknowledgement is awaited before the next event, because Faust's own flush gives up after 0.1 s;
- delivery is at least once; it counts once because the state keeps the offsets it contains, and because outputs have
  ids derived from their source.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import faust
import structlog
from tenacity import AsyncRetrying, wait_random_exponential

from schemas.clock import now
from streams.kafka.stored_state import StoredState
from streams.processor import FailedRecordError, Outcome, Processor, process
from streams.records import NewRecord, Outgoing, Record

S = TypeVar("S")
DEADLINES_EVERY_S = 1.0
log_event = structlog.get_logger(__name__)


class Table(Protocol):
    """Where states are kept: a Faust table, or a dict."""

    def get(self, key: str, /) -> bytes | None:
        """Return what is stored under a key."""
        ...

    def __setitem__(self, key: str, value: bytes, /) -> None: ...

    def pop(self, key: str, default: None, /) -> bytes | None:
        """Forget a key."""
        ...

    def items(self) -> Any:
        """Return all keys with what is stored under them."""
        ...


class Send(Protocol):
    """Writes a record."""

    async def __call__(self, record: NewRecord) -> None:
        """Return when all replicas have the record; raise if that could not be."""
        ...


class KafkaStage(Generic[S]):
    """One processor between Kafka topics: everything the Faust function does, without Faust."""

    def __init__(self, processor: Processor[S], table: Table, send: Send) -> None:
        self.processor = processor
        self._table = table
        self._send = send

    async def take(self, record: Record) -> None:
        """Process one record. When this returns, its outputs are on Kafka and its state is in the table."""
        key = self.processor.state_key(record)
        stored = StoredState.decode(self._table.get(key))
        if stored.contains(record):
            return
        state = self.processor.decode_state(stored.value) if stored.value is not None else None
        try:
            # In a thread: a judge may wait for a model, and the event loop must go on answering Kafka.
            outcome = await asyncio.to_thread(process, self.processor, state, record)
        except FailedRecordError as error:
            log_event.warning("dead letter", group=self.processor.name, record=record.position, error=str(error))
            await self._write((error.dead_letter,))
            self._table[key] = stored.after(record, stored.value, stored.deadline).encode()
            return
        await self._write(outcome.records)
        self._table[key] = stored.after(record, self._encoded(outcome), outcome.deadline).encode()

    async def expire_due(self) -> None:
        """Tell the processor of every deadline that has passed."""
        time = now()
        for key, value in list(self._table.items()):
            stored = StoredState.decode(value)
            if stored.deadline is None or stored.deadline > time or stored.value is None:
                continue
            outcome = self.processor.expire(self.processor.decode_state(stored.value), key, time)
            await self._write(outcome.records)
            # The offsets stay: a record delivered again after its state was forgotten must still be known.
            self._table[key] = StoredState(self._encoded(outcome), stored.contained, outcome.deadline).encode()

    def _encoded(self, outcome: Outcome[S]) -> bytes | None:
        return None if outcome.state is None else self.processor.encode_state(outcome.state)

    async def _write(self, outputs: Sequence[Outgoing]) -> None:
        """Write outputs in order, trying again for as long as it takes: giving up would lose the event."""
        for outgoing in outputs:
            async for attempt in AsyncRetrying(wait=wait_random_exponential(multiplier=0.1, max=30)):
                with attempt:
                    await self._send(outgoing.record())


def create_app(broker: str, processor: Processor[S], data_dir: Path) -> Any:
    """Return the Faust app of one processor.

    Args:
        broker: `kafka://host:port[,host:port]`.
        data_dir: where Faust keeps what it needs locally.
    """
    partitions = processor.topics[0].partitions
    name = processor.group
    folder = data_dir / "faust" / name
    folder.mkdir(parents=True, exist_ok=True)
    app = faust.App(
        name,
        broker=broker.replace(",", ";kafka://"),
        store="memory://",
        datadir=str(folder),
        key_serializer="raw",
        value_serializer="raw",
        topic_partitions=partitions,
        topic_disable_leader=True,
        topic_allow_declare=False,
        producer_acks=-1,
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
    table = app.Table("states", key_type=str, value_type=bytes, partitions=partitions)

    async def send(record: NewRecord) -> None:
        topic = app.topic(record.topic, key_serializer="raw", value_serializer="raw")
        sent = await topic.send(key=record.key, value=record.value, headers=dict(record.headers))
        await sent

    stage = KafkaStage(processor, table, send)

    async def consume(stream: Any) -> None:
        async for event in stream.events():
            await stage.take(_record(event.message))

    app.agent(source, name=f"{name}.consume")(consume)
    app.timer(DEADLINES_EVERY_S, name=f"{name}.deadlines")(stage.expire_due)
    return app


def run_app(broker: str, processors: Sequence[Processor[Any]], data_dir: Path) -> None:
    """Run the apps of several processors in this process until SIGINT or SIGTERM."""
    first, *others = (create_app(broker, processor, data_dir) for processor in processors)
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
