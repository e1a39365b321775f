"""The publisher: it writes events to the log in order, and to a spool while the log is away."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import structlog

from infra.runtime.threads import vital_thread
from schemas.topics import TOPICS
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.errors import LogUnavailableError, StreamError
from streams.storage.log import Log
from streams.storage.records import NewRecord, Outgoing, share_records

BATCH = 1000
FORWARDER = "forwarder"
RETRY_S = 0.5
# Long enough to gather the calls of a busy moment into one transaction; nobody waits for these.
LINGER_S = 0.005
DEFAULT_SPOOL_MAX_BYTES = 2**30
logger = structlog.get_logger(__name__)


@dataclass
class PublishingStatus:
    """What became of the records handed over. A record carries one event or several.

    Attributes:
        accepted: records handed over, by topic. They are durable, or soon will be.
        lost: records, by topic, that neither the log nor the spool took.
        spooled: records that wait in the spool now.
        error: why the log cannot be written; None if it can.
    """

    accepted: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    spooled: int = 0
    error: str | None = None


@dataclass(frozen=True)
class _Pending:
    records: list[NewRecord]
    written: Future[None]


class Publisher:
    """Writes events from one thread, many in one transaction.

    While the log cannot be written, events go to the spool. Later events follow them there until
    the spool is empty, so the order of events never changes. If the process dies while it forwards,
    an event may reach the log twice. Both records have one event id, and the join counts it once.

    Args:
        open_log: opens the log; called again after a failure.
        open_spool: opens the spool, an embedded log of its own.
        spool_max_bytes: a spool that holds more takes no new events. A caller who waits for
            durability gets an error; an event that nobody waits for counts as lost. Events that
            were accepted before are never dropped for newer ones.
    """

    def __init__(
        self,
        open_log: Callable[[], Log],
        open_spool: Callable[[], EmbeddedLog],
        spool_max_bytes: int = DEFAULT_SPOOL_MAX_BYTES,
    ) -> None:
        self.status = PublishingStatus()
        self._open_log = open_log
        self._open_spool = open_spool
        self._spool_max_bytes = spool_max_bytes
        self._log: Log | None = None
        self._try_again_at = 0.0
        self._handed_over: deque[_Pending] = deque()
        self._hurry = threading.Event()
        self._closing = False
        self._thread = vital_thread("publisher", self._run)

    def start(self) -> None:
        """Start the thread that writes."""
        self._thread.start()

    def close(self) -> None:
        """Write what was handed over, then stop."""
        self._closing = True
        self._hurry.set()
        self._thread.join()

    def publish(self, events: Sequence[Outgoing], urgent: bool = True) -> Future[None]:
        """Hand over events. The future ends when they are durable, or raises LogUnavailableError.

        Args:
            urgent: whether somebody waits. Other events are written within `LINGER_S`, together
                with those that come meanwhile. A transaction for each call would slow the calls
                that are being answered.
        """
        records = share_records(events)
        self.status.accepted.update(record.topic for record in records)
        pending = _Pending(records, Future())
        # From here on nobody can cancel the future. If a caller that stops waiting could, the
        # publisher's thread would set the result of a future that has ended, and raise.
        pending.written.set_running_or_notify_cancel()
        self._handed_over.append(pending)
        if urgent:
            self._hurry.set()
        return pending.written

    def _run(self) -> None:
        spool = self._open_spool()
        self.status.spooled = _waiting_records(spool)
        closing = False
        while not closing:
            self._hurry.wait(LINGER_S)
            self._hurry.clear()
            # Read it before the last batch: `close` sets it after everything was handed over.
            closing = self._closing
            if time.monotonic() >= self._try_again_at:
                self._forward(spool)
            while batch := self._next_batch():
                self._write(batch, spool)
        # The last chance to empty the spool: try at once, whatever failed a moment ago.
        self._try_again_at = 0.0
        self._forward(spool)
        spool.close()
        if self._log is not None:
            self._log.close()

    def _next_batch(self) -> list[_Pending]:
        """Take as much as is there, up to a batch."""
        batch: list[_Pending] = []
        while self._handed_over and len(batch) < BATCH:
            batch.append(self._handed_over.popleft())
        return batch

    def _write(self, batch: list[_Pending], spool: EmbeddedLog) -> None:
        records = [record for pending in batch for record in pending.records]
        try:
            # While older events wait in the spool, new ones must queue behind them.
            if self.status.spooled or not self._append(records):
                self._spool(records, spool)
        except LogUnavailableError as error:
            self.status.lost.update(record.topic for record in records)
            logger.error(
                "events lost: neither log nor spool takes them",
                count=len(records),
                error=str(error),
            )
            for pending in batch:
                pending.written.set_exception(error)
            return
        for pending in batch:
            pending.written.set_result(None)

    def _spool(self, records: list[NewRecord], spool: EmbeddedLog) -> None:
        if spool.used_bytes() > self._spool_max_bytes:
            raise LogUnavailableError(
                f"the spool is full ({self._spool_max_bytes} bytes, gateway.spool_max_bytes)"
            )
        spool.append(records)
        self.status.spooled += len(records)

    def _append(self, records: list[NewRecord]) -> bool:
        """Write to the log. Return whether that was possible.

        For `RETRY_S` after a failure it does not try: each try may wait for the log's timeout.
        """
        if time.monotonic() < self._try_again_at:
            return False
        try:
            if self._log is None:
                self._log = self._open_log()
            self._log.append(records)
        # Also for a damaged log: a person may repair it, and the spool keeps events meanwhile.
        except StreamError as error:
            if self.status.error is None:
                logger.warning("the log cannot be written, events are spooled", error=str(error))
            self.status.error = str(error)
            self._try_again_at = time.monotonic() + RETRY_S
            if self._log is not None:
                self._log.close()
                self._log = None
            return False
        self.status.error = None
        return True

    def _forward(self, spool: EmbeddedLog) -> None:
        """Move what waits in the spool to the log, in order, as far as the log takes it."""
        while self.status.spooled:
            records = spool.fetch(_next_positions(spool), BATCH)
            moved = [
                NewRecord(record.topic, record.key, record.value, record.headers)
                for record in records
            ]
            if not self._append(moved):
                return
            positions = {(record.topic, record.partition): record.offset + 1 for record in records}
            # Only after the append: a crash in between repeats events, and loses none.
            spool.commit(FORWARDER, positions)
            spool.delete_before(positions)
            self.status.spooled -= len(records)
            if not self.status.spooled:
                logger.info("the log can be written again, the spool is empty")


def _next_positions(spool: EmbeddedLog) -> dict[tuple[str, int], int]:
    """Return the offset of the first record that waits, for each partition of the spool."""
    most = max(topic.partitions for topic in TOPICS.values())
    return spool.committed(FORWARDER, TOPICS, range(most))


def _waiting_records(spool: EmbeddedLog) -> int:
    positions = _next_positions(spool)
    ends = {topic: spool.ends(topic) for topic in TOPICS}
    return sum(ends[topic][partition] - offset for (topic, partition), offset in positions.items())
