"""One processor between Kafka topics: everything the Faust function does, without Faust."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import structlog
from tenacity import AsyncRetrying, wait_random_exponential

from schemas.clock import now
from streams.kafka.stored_state import StoredState, source_of
from streams.processor import FailedRecordError, Outcome, Processor, process
from streams.records import NewRecord, Outgoing, Record

S = TypeVar("S")
ACKNOWLEDGED_IN_S = 15.0
"""Then a write is tried again: Faust forgets acknowledgements it waits for when it replaces its producer."""

log_event = structlog.get_logger(__name__)


class States(Protocol):
    """Where a processor's states are kept by key."""

    def get(self, key: str) -> bytes | None:
        """Return what is stored under a key."""
        ...

    def items(self) -> Iterable[tuple[str, bytes]]:
        """Return the keys of this worker's partitions with what is stored under them."""
        ...

    async def store(self, key: str, value: bytes, partition: int) -> None:
        """Return when all in-sync replicas have the state; raise if that could not be."""
        ...


class Send(Protocol):
    """Writes a record."""

    async def __call__(self, record: NewRecord) -> None:
        """Return when all in-sync replicas have the record; raise if that could not be."""
        ...


class KafkaStage(Generic[S]):
    """Carries one processor, one record at a time.

    The order of effects is what makes records count once: outputs are acknowledged, then the state that contains the
    record, and only when this returns may the record's offset be committed.
    """

    def __init__(self, processor: Processor[S], states: States, send: Send) -> None:
        self.processor = processor
        self._states = states
        self._send = send
        self._turn = asyncio.Lock()

    @property
    def idle(self) -> bool:
        """Whether no record and no deadline is being processed."""
        return not self._turn.locked()

    async def take(self, record: Record) -> None:
        """Process one record. When this returns, its outputs and its state are on Kafka."""
        async with self._turn:
            await self._take(record)

    async def expire_due(self) -> None:
        """Tell the processor of every deadline that has passed."""
        time = now()
        for key, value in list(self._states.items()):
            deadline = StoredState.decode(value).deadline
            if deadline is not None and deadline <= time:
                async with self._turn:
                    await self._expire(key)

    async def _take(self, record: Record) -> None:
        key = self.processor.state_key(record)
        stored = StoredState.decode(self._states.get(key))
        if stored.contains(record):
            return
        state = self.processor.decode_state(stored.value) if stored.value is not None else None
        try:
            # In a thread: a judge may wait for a model, and the event loop must go on answering Kafka.
            outcome = await asyncio.to_thread(process, self.processor, state, record)
        except FailedRecordError as error:
            log_event.warning("dead letter", group=self.processor.group, record=record.position, error=str(error))
            await self._write((error.dead_letter,), record)
            await self._store(key, stored.after(record, stored.value, stored.deadline))
            return
        await self._write(outcome.records, record)
        await self._store(key, stored.after(record, self._encoded(outcome), outcome.deadline))

    async def _expire(self, key: str) -> None:
        stored = StoredState.decode(self._states.get(key))
        time = now()
        if stored.deadline is None or stored.deadline > time or stored.value is None:
            return
        outcome = self.processor.expire(self.processor.decode_state(stored.value), key, time)
        await self._write(outcome.records, None)
        await self._store(key, stored.after_deadline(self._encoded(outcome), outcome.deadline))

    def _encoded(self, outcome: Outcome[S]) -> bytes | None:
        return None if outcome.state is None else self.processor.encode_state(outcome.state)

    async def _write(self, outputs: Sequence[Outgoing], source: Record | None) -> None:
        """Write outputs in order, trying again for as long as it takes: giving up would lose the event."""
        for index, outgoing in enumerate(outputs):
            record = outgoing.record()
            headers = record.headers if source is None else (*record.headers, source_of(source, index))
            async for attempt in _patiently():
                with attempt:
                    async with asyncio.timeout(ACKNOWLEDGED_IN_S):
                        await self._send(NewRecord(record.topic, record.key, record.value, headers))

    async def _store(self, key: str, stored: StoredState) -> None:
        async for attempt in _patiently():
            with attempt:
                async with asyncio.timeout(ACKNOWLEDGED_IN_S):
                    await self._states.store(key, stored.encode(), stored.partition)


def _patiently() -> AsyncRetrying:
    return AsyncRetrying(wait=wait_random_exponential(multiplier=0.1, max=30))
