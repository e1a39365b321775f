"""The embedded runner: outputs, states and offsets of a batch in one transaction, so records count exactly once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

import structlog

from schemas.clock import now
from streams.embedded.leases import DEFAULT_LEASE_S, Leases
from streams.embedded.log import EmbeddedLog
from streams.embedded.states import Change, Key, States
from streams.errors import LeaseLostError
from streams.processor import FailedRecordError, Outcome, Processor, process
from streams.records import Outgoing, Record

S = TypeVar("S")
log_event = structlog.get_logger(__name__)


@dataclass
class _Batch(Generic[S]):
    """What a batch will commit."""

    outputs: list[Outgoing] = field(default_factory=list)
    changes: dict[Key, Change[S]] = field(default_factory=dict)
    positions: dict[tuple[str, int], int] = field(default_factory=dict)

    def apply(self, key: Key, outcome: Outcome[S]) -> None:
        self.outputs.extend(outcome.records)
        self.changes[key] = Change(outcome.state, outcome.deadline)


class EmbeddedRunner(Generic[S]):
    """Carries one processor over the partitions this worker holds.

    Args:
        member: this worker's name among those of the group.
        batch: most records in one transaction.
    """

    def __init__(
        self,
        log: EmbeddedLog,
        processor: Processor[S],
        member: str,
        *,
        batch: int = 500,
        lease_s: float = DEFAULT_LEASE_S,
    ) -> None:
        counts = {topic.partitions for topic in processor.topics}
        if len(counts) != 1:
            raise ValueError(f"{processor.name} joins topics with different numbers of partitions: {sorted(counts)}")
        self.processor = processor
        self._log = log
        self._batch = batch
        self._topics = [topic.name for topic in processor.topics]
        self._leases = Leases(log, processor.group, member, counts.pop(), lease_s)
        self._states: States[S] = States(log, processor)
        self._positions: dict[tuple[str, int], int] = {}

    def run_once(self) -> int:
        """Process one batch of what has arrived and what is due; return how many records and deadlines that was."""
        if self._leases.refresh():
            self._states.clear()
            self._positions = self._log.committed(self.processor.group, self._topics, self._leases.held)
        records = self._log.fetch(self._positions, self._batch)
        time = now()
        due = self._states.due(self._leases.held, time, self._batch)
        if not records and not due:
            return 0
        batch = self._processed(records, due, time)
        try:
            self._commit(batch)
        except LeaseLostError as error:
            log_event.warning("lease lost, batch dropped", group=self.processor.group, error=str(error))
            self._states.clear()
            self._leases.forget()
            return 0
        return len(records) + len(due)

    def close(self) -> None:
        """Give the partitions to others at once."""
        self._leases.leave()

    def _processed(self, records: Sequence[Record], due: Sequence[Key], time: datetime) -> _Batch[S]:
        """Run the processor over a batch.

        A failure may leave a state half changed, so the batch starts again from the committed states with the failed
        record set aside.
        """
        set_aside: dict[str, Outgoing] = {}
        while True:
            batch: _Batch[S] = _Batch()
            try:
                for record in records:
                    self._process_one(batch, record, set_aside)
            except FailedRecordError:
                self._states.clear()
                continue
            self._expire(batch, due, time)
            return batch

    def _process_one(self, batch: _Batch[S], record: Record, set_aside: dict[str, Outgoing]) -> None:
        batch.positions[record.topic, record.partition] = record.offset + 1
        if not self.processor.concerns(record):
            return
        if record.position in set_aside:
            batch.outputs.append(set_aside[record.position])
            return
        key = (record.partition, self.processor.state_key(record))
        try:
            batch.apply(key, process(self.processor, self._state(batch, key), record))
        except FailedRecordError as error:
            log_event.warning(
                "dead letter", group=self.processor.group, record=record.position, error=str(error.__cause__)
            )
            set_aside[record.position] = error.dead_letter
            raise

    def _expire(self, batch: _Batch[S], due: Sequence[Key], time: datetime) -> None:
        for key in due:
            state = self._state(batch, key)
            touched = key in batch.changes
            if state is not None and not touched:
                batch.apply(key, self.processor.expire(state, key[1], time))

    def _state(self, batch: _Batch[S], key: Key) -> S | None:
        change = batch.changes.get(key)
        return change.state if change else self._states.get(key)

    def _commit(self, batch: _Batch[S]) -> None:
        with self._log.transaction():
            self._leases.verify_within()
            self._log.append_within([outgoing.record() for outgoing in batch.outputs])
            self._states.write_within(batch.changes)
            self._log.commit_within(self.processor.group, batch.positions)
        self._states.remember(batch.changes)
        self._positions |= batch.positions
