"""The contract of a stream processor, and one step of it, shared by all runners."""

import re
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Generic, TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from schemas.clock import from_milliseconds
from schemas.dead_letters import DeadLetter, DeadLetterEvent, Header
from schemas.envelope import AnyEvent
from schemas.identifiers import derived_event_id
from schemas.serialization import UndecodableError, decode_all
from schemas.topics import DEAD_LETTERS, PREFIX, TOPICS, Topic
from streams.storage.errors import RejectedRecordError, TransientError
from streams.storage.records import MAX_RECORD_BYTES, Outgoing, Record

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[S]):
    """The result of processing a record.

    Attributes:
        records: events to write, in order.
        state: new state of the key; None deletes it.
        deadline: when to call `expire` for the key, unless a later outcome sets another time; None
            for never.
    """

    records: tuple[Outgoing, ...] = ()
    state: S | None = None
    deadline: datetime | None = None


class Processor(ABC, Generic[S]):
    """A pure function from a key's state and a record to new records and a new state.

    It has no clock and no transport: time comes with the record or with `expire`. What it must look
    up (an artifact by its hash, a grade from a judge) is given to its constructor. The ids of its
    outputs are derived from their source, so a repeated output counts once.

    Attributes:
        name: unique among the processors of an installation; part of dead letters and event ids.
        topics: topics that it reads. All have the same key and number of partitions, so the state
            of a key is local.
        batch: most records that are committed together. Keep it small if a record takes long: after
            a crash the whole batch is repeated.
        max_attempts: attempts for a record that raises TransientError. A processor that asks a
            server wants several.
    """

    name: str
    topics: ClassVar[tuple[Topic, ...]]
    batch: ClassVar[int] = 500
    max_attempts: ClassVar[int] = 1

    @property
    def group(self) -> str:
        """Consumer group of the processor. It also names the Kafka topic of its states, so it is
        legal there.
        """
        # Kafka allows letters, digits, dots, underscores and hyphens only.
        return PREFIX + re.sub(r"[^A-Za-z0-9._-]+", "-", self.name)

    def concerns(self, source: Record) -> bool:  # noqa: ARG002
        """Return whether a record can matter, judged by its key and headers. Other records are not
        decoded.
        """
        return True

    @abstractmethod
    def handle(self, state: S | None, event: AnyEvent, source: Record) -> Outcome[S]:
        """Process one event.

        Args:
            source: the record it lies in, `source.index` events after the first.

        Raises:
            RejectedRecordError: the record can never be processed; it becomes a dead letter.
            TransientError: it may succeed later. Raise it before `state` is changed.
        """

    def handle_all(self, state: S | None, events: Sequence[AnyEvent], source: Record) -> Outcome[S]:
        """Process the events of one record; by default one after another.

        Raises:
            As `handle`.
        """
        if len(events) == 1:
            return self.handle(state, events[0], source)
        outputs: list[Outgoing] = []
        for index, event in enumerate(events):
            outcome = self.handle(state, event, replace(source, index=index))
            outputs.extend(outcome.records)
            state = outcome.state
        return Outcome(tuple(outputs), outcome.state, outcome.deadline)

    def expire(self, state: S, key: str, now: datetime) -> Outcome[S]:  # noqa: ARG002
        """Handle the passed deadline of a key. By default the state is deleted."""
        return Outcome()

    def state_key(self, source: Record) -> str:
        """Return the key of a record's state; by default the record's own key."""
        return (source.key or b"").decode("utf-8", "replace")

    @abstractmethod
    def encode_state(self, state: S) -> bytes:
        """Return the state as bytes; equal states give equal bytes."""

    @abstractmethod
    def decode_state(self, value: bytes) -> S:
        """Return the state that `encode_state` wrote."""


class FailedRecordError(Exception):
    """A record must become a dead letter. The cause of this error is the reason."""

    def __init__(self, dead_letter: Outgoing) -> None:
        super().__init__(dead_letter.event.payload.error_message)
        self.dead_letter = dead_letter


class FailedDeadlineError(Exception):
    """A deadline that could not be processed; its cause is the error that says why."""


def process(processor: Processor[S], state: S | None, source: Record) -> Outcome[S]:
    """Decode a record and process it. Transient errors are tried again.

    Raises:
        FailedRecordError: holds the dead letter to write in the record's place. Read `state` again
            from the store, because it may be half changed.
    """
    attempts = 0
    try:
        events = decode_all(TOPICS[source.topic].event, source.value)
        if processor.max_attempts == 1:
            # A `Retrying` costs more time than most records.
            return _check_sizes(processor.handle_all(state, events, source))
        for attempt in Retrying(
            retry=retry_if_exception_type(TransientError),
            stop=stop_after_attempt(processor.max_attempts),
            wait=wait_random_exponential(multiplier=0.1, max=5),
            reraise=True,
        ):
            with attempt:
                attempts += 1
                outcome = _check_sizes(processor.handle_all(state, events, source))
    except UndecodableError as error:
        raise FailedRecordError(dead_letter(processor.name, source, error, 1)) from error
    # A bug in a processor must set the record aside, not lose it and not stop the stream.
    except Exception as error:
        raise FailedRecordError(
            dead_letter(processor.name, source, error, max(attempts, 1))
        ) from error
    return outcome


def process_deadline(processor: Processor[S], state: S, key: str, time: datetime) -> Outcome[S]:
    """Tell a processor that a key's deadline has passed.

    Raises:
        FailedDeadlineError: the processor failed. Read `state` again from the store, because it may
            be half changed.
    """
    try:
        return _check_sizes(processor.expire(state, key, time))
    except Exception as error:  # any bug must leave this key aside, not stop the stream
        raise FailedDeadlineError(str(error)) from error


def _check_sizes(outcome: Outcome[S]) -> Outcome[S]:
    for outgoing in outcome.records:
        if len(outgoing.value) > MAX_RECORD_BYTES:
            size = f"{len(outgoing.value)} bytes on {outgoing.topic.name}"
            raise RejectedRecordError(
                f"it makes an event of {size}; the most is {MAX_RECORD_BYTES}"
            )
    return outcome


def dead_letter(processor: str, source: Record, error: Exception, attempts: int) -> Outgoing:
    """Return a record as a dead letter, whole, with the reason."""
    time = from_milliseconds(source.timestamp_ms)
    payload = DeadLetter(
        topic=source.topic,
        partition=source.partition,
        offset=source.offset,
        key=_base64(source.key),
        value=_base64(source.value),
        headers=[
            Header(name=name, value=_required_base64(value)) for name, value in source.headers
        ],
        processor=processor,
        error_type=type(error).__name__,
        error_message=str(error),
        attempts=attempts,
    )
    event = DeadLetterEvent(
        event_id=derived_event_id(time, processor, DEAD_LETTERS.name, source.position),
        time=time,
        payload=payload,
    )
    return Outgoing.of(DEAD_LETTERS, source.topic, event)


def output_id(processor: Processor[S], source: Record, time: datetime, index: int = 0) -> str:
    """Return the event id of a processor's `index`-th output for a record."""
    within = (source.index,) if source.index else ()
    return derived_event_id(
        time, processor.name, source.topic, source.partition, source.offset, index, *within
    )


def _required_base64(value: bytes) -> bytes:
    # Base64Bytes decodes what it is given, so it must be given the encoded form.
    return b64encode(value)


def _base64(value: bytes | None) -> bytes | None:
    return None if value is None else _required_base64(value)
