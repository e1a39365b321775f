"""The Faust runner: the same processors on Kafka, one Faust app (a consumer group) for each.

Faust subscribes, rebalances, reads and commits offsets. Some of its habits lose events (measured on
faust-streaming 0.15.3). This runner works around each:

- An exception in a Faust function acknowledges the event. So the function only hands the event on.
  We acknowledge it when its outputs and states are on Kafka.
- Faust commits past a value that it cannot decode. So it gets raw bytes, and the processor decodes.
- Its flush gives up after 0.1 s. Its tables send their changelog without waiting. It forgets an
  event that is sent while its producer is replaced. So outputs and states are written in
  transactions of our own (`streams.runners.kafka.changelog`).
- It reads uncommitted records, unless its own transactions are on. So its consumer is told to read
  committed ones only.
- It acknowledges a record that it skips in a rebalance. So after a rebalance the first offsets are
  compared with those that the states contain, and skipped records are read again (`Gaps`).
- After a rebalance it may stop delivering a partition. That is found and mended
  (`streams.runners.kafka.stalls`).
- It delivers at least once. Each record counts once, because states know what they contain
  (`streams.runners.kafka.states`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import faust
import structlog
from faust.tables.manager import TableManager
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer
from faust.types import TP

from streams.processing.processor import Processor
from streams.runners.config import DEFAULT_LEASE_S
from streams.runners.kafka.changelog import TransactionalChangelog
from streams.runners.kafka.stage import KafkaStage
from streams.runners.kafka.stalls import CHECK_EVERY_S, StalledPartitions
from streams.storage.kafka.cluster import Cluster
from streams.storage.kafka.log import KafkaLog
from streams.storage.records import MAX_RECORD_BYTES, Record

S = TypeVar("S")
HOLD_EVERY_S = 1.0
COMMIT_EVERY_S = 1.0
LEAST_SESSION_S = 6.0  # brokers refuse less (their group.min.session.timeout.ms)
logger = structlog.get_logger(__name__)


def create_app(
    cluster: Cluster, processor: Processor[S], data_dir: Path, lease_s: float = DEFAULT_LEASE_S
) -> Any:
    """Return the Faust app of one processor.

    Args:
        data_dir: folder below which Faust keeps local files.
        lease_s: seconds until a dead worker's partitions go to another. Less than
            `LEAST_SESSION_S` counts as that.
    """
    name = cluster.prefixed(processor.group)
    app, source = _faust_app(cluster, processor, data_dir, lease_s)
    stage = KafkaStage(
        processor, lambda partition: TransactionalChangelog(cluster, processor.group, partition)
    )
    gaps = Gaps(app, cluster, stage)
    # Bounded, so that Faust stops fetching while a batch is under way.
    arrived: asyncio.Queue[Any] = asyncio.Queue(processor.batch)

    async def consume(stream: Any) -> None:
        async for event in stream.noack().events():
            await arrived.put(event)

    async def work() -> None:
        while True:
            # Wait for one record, then take what else is here: batches grow only under load.
            events = [await arrived.get()]
            while len(events) < processor.batch and not arrived.empty():
                events.append(arrived.get_nowait())
            records = [_record(cluster, event.message) for event in events]
            taken = await gaps.admit(records)
            await stage.take(taken)
            # A record that is read again is acknowledged when it comes in turn.
            done = {record.position for record in taken}
            for event, record in zip(events, records, strict=True):
                if record.position in done:
                    event.ack()

    async def hold() -> None:
        # In a rebalance the assignment is not settled yet.
        if not app.rebalancing:
            await stage.hold({place.partition for place in app.assignor.assigned_actives()})

    async def stop(*_: Any, **__: Any) -> None:
        await stage.close()

    async def look_again(*_: Any, **__: Any) -> None:
        gaps.look_again()

    # Faust keeps weak references, and nothing else holds these functions.
    app.on_partitions_assigned.connect(look_again, weak=False)
    app.agent(source, name=f"{name}.consume")(consume)
    app.task(work)
    app.timer(HOLD_EVERY_S, name=f"{name}.hold")(hold)
    app.on_before_shutdown.connect(stop, weak=False)
    topics = {cluster.prefixed(topic.name) for topic in processor.topics}
    stalls = StalledPartitions(app, topics, lambda: stage.idle and arrived.empty(), unread(cluster))
    app.timer(CHECK_EVERY_S, name=f"{name}.stalls")(stalls.mend)
    return app


def _faust_app(
    cluster: Cluster, processor: Processor[Any], data_dir: Path, lease_s: float
) -> tuple[Any, Any]:
    """Return a Faust app that does nothing yet, and its channel of the processor's topics."""
    session_s = max(LEAST_SESSION_S, lease_s)
    name = cluster.prefixed(processor.group)
    folder = data_dir / "faust" / name
    folder.mkdir(parents=True, exist_ok=True)
    partitions = processor.topics[0].partitions
    app = faust.App(
        name,
        broker=[f"kafka://{server}" for server in cluster.servers],
        broker_credentials=_credentials(cluster),
        broker_commit_interval=COMMIT_EVERY_S,
        broker_session_timeout=session_s,
        # Kafka's advice: a third of the session, so that two heartbeats may be lost.
        broker_heartbeat_interval=session_s / 3,
        # Faust keeps no states for us; a local database would only have to be cleaned up.
        store="memory://",
        datadir=str(folder),
        key_serializer="raw",
        value_serializer="raw",
        topic_partitions=partitions,
        topic_disable_leader=True,
        # `everloop topics` declares topics, with their partitions and settings.
        topic_allow_declare=False,
        consumer_max_fetch_size=MAX_RECORD_BYTES,
        web_enabled=False,
        processing_guarantee="at_least_once",
        TableManager=_NoTables,
    )
    source = app.topic(
        *(cluster.prefixed(topic.name) for topic in processor.topics),
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
        partitions=partitions,
    )
    app.transport.Consumer = _CommittedConsumer
    return app, source


class Gaps:
    """Goes back to records that Faust skipped in a rebalance.

    A partition is compared once after each rebalance. Later gaps are no loss: there lie the markers
    of transactions, which are no records.
    """

    def __init__(self, app: Any, cluster: Cluster, stage: KafkaStage[Any]) -> None:
        self._app = app
        self._cluster = cluster
        self._stage = stage
        self._awaited: dict[tuple[str, int], int] = {}
        self._looked: set[tuple[str, int]] = set()

    def look_again(self) -> None:
        """Compare every partition anew: it may have come from another worker, or come back."""
        self._looked.clear()
        self._awaited.clear()

    async def admit(self, records: Sequence[Record]) -> list[Record]:
        """Return the records that may be taken now.

        The others are read again later, after the skipped records that lie before them.
        """
        candidates = [record for record in records if self._in_turn(record)]
        places = {(record.topic, record.partition) for record in candidates} - self._looked
        if not places:
            return candidates
        self._looked |= places
        for (topic, partition), offset in (await self._stage.missing(candidates)).items():
            place = TP(self._cluster.prefixed(topic), partition)
            if (topic, partition) in places and offset >= (
                await self._app.consumer.earliest_offsets(place)
            )[place]:
                logger.info(
                    "records were skipped in a rebalance and are read again",
                    topic=topic,
                    partition=partition,
                    at=offset,
                )
                first = next(
                    r.offset for r in candidates if (r.topic, r.partition) == (topic, partition)
                )
                self._awaited[topic, partition] = first
                await self._app.consumer.seek(place, offset)
        return [
            record for record in candidates if (record.topic, record.partition) not in self._awaited
        ]

    def _in_turn(self, record: Record) -> bool:
        """Return False for a record that was fetched before its partition was read again."""
        place = (record.topic, record.partition)
        if record.offset > self._awaited.get(place, record.offset):
            return False
        self._awaited.pop(place, None)
        return True


class _NoTables(TableManager):  # type: ignore[misc]
    """Faust's tables, of which we have none: its own waits a second until they are declared, and
    the apps of a process start one after another.
    """

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class _CommittedThread(AIOKafkaConsumerThread):  # type: ignore[misc]
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        return consumer


class _CommittedConsumer(Consumer):  # type: ignore[misc]
    """Faust's consumer, reading committed records only."""

    def _new_consumer_thread(self) -> Any:
        return _CommittedThread(self, loop=self.loop, beacon=self.beacon)


def run_app(
    cluster: Cluster,
    processors: Sequence[Processor[Any]],
    data_dir: Path,
    lease_s: float = DEFAULT_LEASE_S,
) -> None:
    """Run the apps of several processors in this process until SIGINT or SIGTERM."""
    first, *others = (create_app(cluster, processor, data_dir, lease_s) for processor in processors)
    worker = faust.Worker(first, *others, loglevel="WARN", quiet=True)
    worker.spinner = None  # it turns on the debug messages of every library
    worker.execute_from_commandline()


def unread(cluster: Cluster) -> Callable[[TP, int], Awaitable[bool]]:
    """Return a function that says whether a partition has a record at or after an offset."""

    def is_unread(place: TP, offset: int) -> bool:
        position = (cluster.ours(place.topic), place.partition)
        with KafkaLog(cluster) as log:
            return log.unread({position: offset})[position] > 0

    async def look(place: TP, offset: int) -> bool:
        return await asyncio.to_thread(is_unread, place, offset)

    return look


def _credentials(cluster: Cluster) -> Any:
    if cluster.protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=cluster.username,
            password=cluster.password,
            ssl_context=cluster.ssl_context,
            mechanism=cluster.mechanism,
        )
    return (
        faust.SSLCredentials(context=cluster.ssl_context)
        if cluster.ssl_context is not None
        else None
    )


def _record(cluster: Cluster, message: Any) -> Record:
    headers = (
        message.headers.items() if isinstance(message.headers, dict) else (message.headers or ())
    )
    return Record(
        cluster.ours(message.topic),
        message.partition,
        message.offset,
        int(message.timestamp * 1000),
        message.key,
        message.value,
        tuple((str(name), bytes(value)) for name, value in headers),
    )
