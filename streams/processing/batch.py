"""The processing of a batch on any log: its outputs, changed states, and records set aside."""

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
    """The new state of a key; None deletes it."""

    state: S | None
    deadline: datetime | None


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """An event to write.

    Attributes:
        partition: partition of the record or key that it was made from.
    """

    partition: int
    outgoing: Outgoing


@dataclass(frozen=True)
class Batch(Generic[S]):
    """Everything to write for a batch."""

    outputs: list[BatchOutput] = field(default_factory=list)
    changes: dict[Key, StateChange[S]] = field(default_factory=dict)

    def apply(self, key: Key, outcome: Outcome[S]) -> None:
        """Add the outcome of one record or deadline."""
        self.outputs.extend(BatchOutput(key[0], event) for event in outcome.records)
        self.changes[key] = StateChange(outcome.state, outcome.deadline)


class StateReader(Protocol[Held]):
    """The stored states of a processor's keys, cached as objects while memory allows."""

    def get(self, key: Key) -> Held | None:
        """Return the stored state of a key; None if there is none."""
        ...

    def clear(self) -> None:
        """Drop the cached objects, because one may be half changed. Stored states stay."""
        ...


def batch_outcome(
    processor: Processor[S],
    states: StateReader[S],
    records: Sequence[Record],
    due: Sequence[Key],
    time: datetime,
) -> Batch[S]:
    """Return the outcome of the records, and then of the deadlines of keys that no record touched.

    A failure may leave a state half changed. So the batch starts again from the stored states, with
    the failed record set aside as a dead letter.
    """
    set_aside: dict[str, Outgoing] = {}
    put_off: set[Key] = set()
    while True:
        batch: Batch[S] = Batch()
        try:
            for record in records:
                _process_one(processor, states, batch, record, set_aside)
            # Records first: one of them may have given its key a later deadline.
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
    # A record of this batch has set the key's deadline anew, or its state is gone.
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
    # An earlier record of the batch may have changed the state already; that is not stored yet.
    change = batch.changes.get(key)
    try:
        batch.apply(key, process(processor, change.state if change else states.get(key), record))
    except FailedRecordError as error:
        logger.warning(
            "dead letter", group=processor.group, record=record.position, error=str(error.__cause__)
        )
        set_aside[record.position] = error.dead_letter
        raise
