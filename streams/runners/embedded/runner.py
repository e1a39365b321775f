"""The embedded runner: outputs, states and offsets of a batch are one transaction.

So each record counts exactly once.
"""

from typing import Generic, TypeVar

import structlog

from schemas.clock import now
from streams.processing.batch import Batch, batch_outcome
from streams.processing.processor import Processor
from streams.runners.config import DEFAULT_LEASE_S
from streams.runners.embedded.leases import Leases
from streams.runners.embedded.states import CachedStates
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.errors import LeaseLostError

S = TypeVar("S")
logger = structlog.get_logger(__name__)


class EmbeddedRunner(Generic[S]):
    """Carries one processor over the partitions this worker holds.

    Args:
        member: this worker's name among those of the group.
        batch: most records in one transaction; None takes the processor's number.
    """

    def __init__(
        self,
        log: EmbeddedLog,
        processor: Processor[S],
        member: str,
        *,
        batch: int | None = None,
        lease_s: float = DEFAULT_LEASE_S,
    ) -> None:
        counts = {topic.partitions for topic in processor.topics}
        # A key would lie in different partitions of the topics, and so with different workers.
        if len(counts) != 1:
            raise ValueError(
                f"{processor.name} joins topics with different numbers of partitions:"
                f" {sorted(counts)}"
            )
        self.processor = processor
        self._log = log
        self._batch = batch or processor.batch
        self._topics = [topic.name for topic in processor.topics]
        self._leases = Leases(log, processor.group, member, counts.pop(), lease_s)
        self._states: CachedStates[S] = CachedStates(log, processor)
        self._positions: dict[tuple[str, int], int] = {}

    def run_once(self) -> int:
        """Process one batch of records and passed deadlines. Return how many there were."""
        # Another worker may have processed these partitions meanwhile, so nothing of them is kept.
        if self._leases.refresh():
            self._states.clear()
            self._positions = self._log.committed(
                self.processor.group, self._topics, self._leases.held
            )
        records = self._log.fetch(self._positions, self._batch)
        time = now()
        due = self._states.due(self._leases.held, time, self._batch)
        if not records and not due:
            return 0
        batch = batch_outcome(self.processor, self._states, records, due, time)
        try:
            self._commit(
                batch, {(record.topic, record.partition): record.offset + 1 for record in records}
            )
        except LeaseLostError as error:
            logger.warning(
                "lease lost, batch dropped", group=self.processor.group, error=str(error)
            )
            self._states.clear()
            self._leases.forget()
            return 0
        return len(records) + len(due)

    def close(self) -> None:
        """Give the partitions to others at once."""
        self._leases.leave()

    def _commit(self, batch: Batch[S], positions: dict[tuple[str, int], int]) -> None:
        with self._log.transaction():
            # In the same transaction as the writes: no other worker can take the lease in between.
            self._leases.verify_within()
            self._log.append_within([output.outgoing.record() for output in batch.outputs])
            self._states.write_within(batch.changes)
            self._log.commit_within(self.processor.group, positions)
        # Only after the commit: the cache must never hold what the log does not.
        self._states.remember(batch.changes)
        self._positions |= positions
