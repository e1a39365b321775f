"""Replay: the same fold over the same log, beside the live one."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from schemas.serialization import UndecodableError
from streams.processing.processor import FailedRecordError, process
from streams.processors.learner import Learned, Learning
from streams.storage.log import Log, read_all

S = TypeVar("S")


def replay(
    log: Log,
    processor: Learning[S],
    start: Mapping[int, int] | None = None,
    without: frozenset[str] = frozenset(),
    on_record: Callable[[], None] = lambda: None,
) -> Learned[S]:
    """Return what a learner has learned from the log, from the beginning or from the given offsets.

    Records that cannot be processed are skipped, as they were when they became dead letters.
    Checkpoints that fall due are made and stored again, under the same hash. They are not
    announced.

    Args:
        start: first offset by partition.
        without: positions of records to skip.
        on_record: called for every record that is read.
    """
    skipped = set(without)
    while True:
        learned = _fold(log, processor, start, skipped, on_record)
        if learned is not None:
            return learned


def _fold(
    log: Log,
    processor: Learning[S],
    start: Mapping[int, int] | None,
    skipped: set[str],
    on_record: Callable[[], None],
) -> Learned[S] | None:
    """Fold all records but the skipped ones. Add the positions of those that fail to `skipped`.

    Returns:
        None if a record failed and may have left the state half changed. Then fold again.
    """
    learned = Learned(processor.learner.initial())
    for topic in processor.topics:
        for record in read_all(log, topic.name, start=start):
            on_record()
            if not processor.concerns(record) or record.position in skipped:
                continue
            try:
                learned = process(processor, learned, record).state or learned
            except FailedRecordError as error:
                skipped.add(record.position)
                # A record that cannot be decoded has not touched the state.
                if not isinstance(error.__cause__, UndecodableError):
                    return None
    return learned


def live_state(log: Log, processor: Learning[S]) -> Learned[S] | None:
    """Return the state that the live learner has stored, None where it has none."""
    stored = log.state(processor.group, processor.learner.target)
    return processor.decode_state(stored) if stored is not None else None
