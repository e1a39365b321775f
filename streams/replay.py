"""Replay: the same fold over the same log, beside the live one."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from streams.embedded.log import EmbeddedLog
from streams.learning import Learned, Learning
from streams.log import Log, read_all
from streams.processor import FailedRecordError, process

S = TypeVar("S")


def replay(
    log: Log,
    processor: Learning[S],
    start: Mapping[int, int] | None = None,
    without: frozenset[str] = frozenset(),
    on_record: Callable[[], None] = lambda: None,
) -> Learned[S]:
    """Return what a learner has learned from the log, from the beginning or from the given offsets.

    Records that cannot be processed are passed over, as they were when they became dead letters. Checkpoints that fall
    due are made and stored, which changes nothing where they exist already, but not announced.

    Args:
        start: first offset by partition.
        without: positions of records to pass over.
        on_record: called once for every record read.
    """
    learned = Learned(processor.learner.initial())
    for topic in processor.topics:
        for record in read_all(log, topic.name, start=start):
            on_record()
            if processor.state_key(record) != processor.learner.target or record.position in without:
                continue
            try:
                learned = process(processor, learned, record).state or learned
            except FailedRecordError:
                # The fold may have stopped half way: begin again without this record.
                return replay(log, processor, start, without | {record.position}, on_record)
    return learned


def live_state(log: EmbeddedLog, processor: Learning[S]) -> Learned[S] | None:
    """Return the state that the live learner has committed, None where it has none."""
    row: Any = log.connection.execute(
        "SELECT value FROM states WHERE consumer_group = ? AND key = ?",
        (processor.group, processor.learner.target),
    ).fetchone()
    return processor.decode_state(row[0]) if row else None
