"""What a batch of records comes to, on whatever log: outputs, changed states, and records set
aside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

import structlog

from streams.processing.processor import (
    FailedDeadlineError,
    FailedRecordError,
    Outcome,
    Processor,
    process,
    process_deadline,
)
from streams.storage.records import Outgoing, Record

S = TypeVar("S")
Held = TypeVar("Held", covariant=True)
Key = tuple[int, str]
"""Partition and key."""

DEADLINE_RETRY = timedelta(hours=1)
"""When a deadline that failed is tried again, by a mended program perhaps. The state is kept."""

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StateChange(Generic[S]):
    """What a key's state becomes; a state of None forgets it."""

    state: S | None
    deadline: datetime | None


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """An event to write.

    Attributes:
        partition: in which the record or the key lies that it was made from.
    """

    partition: int
    outgoing: Outgoing


@dataclass(frozen=True)
class Batch(Generic[S]):
    """What is to be written for a batch."""

    outputs: list[BatchOutput] = field(default_factory=list)
    changes: dict[Key, StateChange[S]] = field(default_factory=dict)

    def apply(self, key: Key, outcome: Outcome[S]) -> None:
        """Add what became of one record or deadline."""
        self.outputs.extend(BatchOutput(key[0], event) for event in outcome.records)
        self.changes[key] = StateChange(outcome.state, outcome.deadline)


class StateReader(Protocol[Held]):
    """The stored states of a processor's keys, kept as objects as long as memory allows."""

    def get(self, key: Key) -> Held | None:
        """Return a key's stored state, None where there is none."""
        ...

    def clear(self) -> None:
        """Forget the objects: one may be half changed. What is stored stays."""
        ...


def batch_outcome(
    processor: Processor[S],
    states: StateReader[S],
    records: Sequence[Record],
    due: Sequence[Key],
    time: datetime,
) -> Batch[S]:
    """Return what a processor makes of records, and then of deadlines of keys that no record
    touched.

    A failure may leave a state half changed, so the batch starts again from the stored states: a
    failed record is set aside as a dead letter, a failed deadline is put off by `DEADLINE_RETRY`.
    """
    set_aside: dict[str, Outgoing] = {}
    put_off: set[Key] = set()
    while True:
        batch: Batch[S] = Batch()
        try:
            for record in records:
                _process_one(processor, states, batch, record, set_aside)
            for key in due:
                _expire_one(processor, states, batch, key, time, put_off)
        except (FailedRecordError, FailedDeadlineError):
            states.clear()
            continue
        return batch


def _expire_one(
    processor: Processor[S],
    states: StateReader[S],
    batch: Batch[S],
    key: Key,
    time: datetime,
    put_off: set[Key],
) -> None:
    state = states.get(key)
    if state is None or key in batch.changes:
        return
    if key in put_off:
        batch.changes[key] = StateChange(state, time + DEADLINE_RETRY)
        return
    try:
        batch.apply(key, process_deadline(processor, state, key[1], time))
    except FailedDeadlineError as error:
        put_off.add(key)
        logger.error(
            "a deadline failed and is put off",
            group=processor.group,
            key=key[1],
            until=(time + DEADLINE_RETRY).isoformat(),
            error=f"{type(error.__cause__).__name__}: {error}",
        )
        raise


def _process_one(
    processor: Processor[S],
    states: StateReader[S],
    batch: Batch[S],
    record: Record,
    set_aside: dict[str, Outgoing],
) -> None:
    if not processor.concerns(record):
        return
    if record.position in set_aside:
        batch.outputs.append(BatchOutput(record.partition, set_aside[record.position]))
        return
    key = (record.partition, processor.state_key(record))
    change = batch.changes.get(key)
    try:
        batch.apply(key, process(processor, change.state if change else states.get(key), record))
    except FailedRecordError as error:
        logger.warning(
            "dead letter", group=processor.group, record=record.position, error=str(error.__cause__)
        )
        set_aside[record.position] = error.dead_letter
        raise
