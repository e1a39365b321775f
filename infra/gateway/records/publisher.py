"""Publishing: events go to the log in order, to a spool on disk while the log cannot be written,
and from there on.
"""

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
LINGER_S = 0.005
DEFAULT_SPOOL_MAX_BYTES = 2**30
logger = structlog.get_logger(__name__)


@dataclass
class PublishingStatus:
    """What has become of the records handed over, by topic; a record carries one event or several.

    Attributes:
        accepted: handed over; durable or about to be.
        lost: could be written neither to the log nor to the spool.
        spooled: waiting in the spool now.
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
    """Writes events from one thread, many in a transaction, so a caller waits for the disk at most
    once a batch.

    While the log cannot be written, events go to the spool, and so does everything after them until
    the spool is empty again: the order of events never changes. An event forwarded twice, because
    the process died in between, carries the same event id, which the join ignores.

    Args:
        open_log: opens the log; called again after a failure.
        open_spool: opens the spool, an embedded log of its own.
        spool_max_bytes: when the spool holds more, events are refused: who waits for one to be
            durable gets an error, what nobody waits for is counted as lost. What was accepted is
            never dropped for newer events.
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
        """Begin to write."""
        self._thread.start()

    def close(self) -> None:
        """Write what was handed over, then stop."""
        self._closing = True
        self._hurry.set()
        self._thread.join()

    def publish(self, events: Sequence[Outgoing], urgent: bool = True) -> Future[None]:
        """Hand over events; the future ends when they are durable, or raises LogUnavailableError.

        Args:
            urgent: whether somebody waits. What nobody waits for is written within `LINGER_S`, with
                what comes meanwhile: a transaction for each call would take the interpreter from
                those being answered.
        """
        records = share_records(events)
        self.status.accepted.update(record.topic for record in records)
        pending = _Pending(records, Future())
        # From here on nobody can cancel it: a caller that stops waiting must not make the
        # publisher's thread set the result of a future that has one.
        pending.written.set_running_or_notify_cancel()
        self._handed_over.append(pending)
        if urgent:
            self._hurry.set()
        return pending.written

    def _run(self) -> None:
        spool = self._open_spool()
        self.status.spooled = _waiting(spool)
        closing = False
        while not closing:
            self._hurry.wait(LINGER_S)
            self._hurry.clear()
            closing = self._closing  # what was handed over before is there to be taken
            if time.monotonic() >= self._try_again_at:
                self._forward(spool)
            while batch := self._next_batch():
                self._write(batch, spool)
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
        """Write to the log; return whether that was possible. Right after a failure it is not tried
        again.
        """
        if time.monotonic() < self._try_again_at:
            return False
        try:
            if self._log is None:
                self._log = self._open_log()
            self._log.append(records)
        except (
            StreamError
        ) as error:  # a damaged log may be put right by hand: what comes meanwhile is kept
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
            records = spool.fetch(_forwarded(spool), BATCH)
            moved = [
                NewRecord(record.topic, record.key, record.value, record.headers)
                for record in records
            ]
            if not self._append(moved):
                return
            positions = {(record.topic, record.partition): record.offset + 1 for record in records}
            spool.commit(FORWARDER, positions)
            spool.delete_before(positions)
            self.status.spooled -= len(records)
            if not self.status.spooled:
                logger.info("the log can be written again, the spool is empty")


def _forwarded(spool: EmbeddedLog) -> dict[tuple[str, int], int]:
    """Return the first offset of each partition of the spool that still waits."""
    most = max(topic.partitions for topic in TOPICS.values())
    return spool.committed(FORWARDER, TOPICS, range(most))


def _waiting(spool: EmbeddedLog) -> int:
    positions = _forwarded(spool)
    ends = {topic: spool.ends(topic) for topic in TOPICS}
    return sum(ends[topic][partition] - offset for (topic, partition), offset in positions.items())
