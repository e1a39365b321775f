"""Dead letters: read them, and append them to their topics again when the reason is gone."""

from collections.abc import Iterable, Iterator

from schemas.dead_letters import DeadLetterEvent
from schemas.topics import DEAD_LETTERS
from streams.storage.log import Log, read_events
from streams.storage.records import REPLAYED_HEADER, NewRecord


def dead_letters(log: Log) -> Iterator[tuple[int, DeadLetterEvent]]:
    """Yield every dead letter with its offset, which is its number."""
    for record, event in read_events(log, DEAD_LETTERS, DeadLetterEvent):
        yield record.offset, event


def put_back(log: Log, letters: Iterable[tuple[int, DeadLetterEvent]]) -> int:
    """Append dead letters to the topics they came from; return how many.

    Key, bytes and headers are those of the original record, so every group that reads the topic
    sees it again. A group that has processed it already recognises its event id.
    """
    records = [original_record(number, event) for number, event in letters]
    log.append(records)
    return len(records)


def original_record(number: int, event: DeadLetterEvent) -> NewRecord:
    """Return the record to append for a dead letter."""
    letter = event.payload
    headers = tuple((header.name, header.value) for header in letter.headers)
    again = (REPLAYED_HEADER, f"{DEAD_LETTERS.name}@{number}".encode())
    # The same key leads to the same partition, where the rollout's state is.
    return NewRecord(letter.topic, letter.key, letter.value, (*headers, again))
