"""One processor between Kafka topics: everything the Faust function does, without Faust."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Generic, TypeVar

import structlog

from schemas.clock import now
from streams.processing.batch import Batch, Key, StateChange, batch_outcome
from streams.processing.processor import Processor
from streams.runners.kafka.states import Changelog, OutdatedError, PartitionStates, Positions
from streams.storage.records import NewRecord, Record

S = TypeVar("S")
LAST_BATCH_S = 5.0
logger = structlog.get_logger(__name__)


class KafkaStage(Generic[S]):
    """Carries one processor, a batch of records at a time.

    Outputs, and the states that contain the records, are committed together. The offsets of the
    records may be committed only when `take` has returned.

    Args:
        changelog: returns the changelog of a partition.
    """

    def __init__(self, processor: Processor[S], changelog: Callable[[int], Changelog]) -> None:
        self.processor = processor
        self._changelog = changelog
        self._partitions: dict[int, PartitionStates[S]] = {}
        # One batch at a time: `take`, `hold` and `missing` come from different Faust tasks, and all
        # change the open partitions.
        self._turn = asyncio.Lock()

    @property
    def idle(self) -> bool:
        """Whether no record and no deadline is being processed."""
        return not self._turn.locked()

    async def missing(self, records: Sequence[Record]) -> dict[tuple[str, int], int]:
        """Return the offset that should have come first, for each partition where it did not.

        The key is (topic, partition).
        """
        first: dict[tuple[str, int], int] = {}
        for record in records:
            first.setdefault((record.topic, record.partition), record.offset)
        async with self._turn:
            await self._open({partition for _, partition in first})
            expected = {
                place: self._partitions[place[1]].positions.next_of(place[0]) for place in first
            }
        return {place: offset for place, offset in expected.items() if first[place] > offset}

    async def take(self, records: Sequence[Record]) -> None:
        """Process records, each partition's in order. Then outputs and states are on Kafka."""
        async with self._turn:
            # Partitions that another worker took are read anew, and their records processed again.
            while records:
                await self._open({record.partition for record in records})
                outdated = await self._run(records, [])
                records = [record for record in records if record.partition in outdated]

    async def hold(self, partitions: Collection[int]) -> None:
        """Keep these partitions and release all others. Process deadlines that have passed."""
        async with self._turn:
            for partition in self._partitions.keys() - set(partitions):
                await self._partitions.pop(partition).close()
            await self._open(partitions)
            time, limit = now(), self.processor.batch
            due = [
                (number, key)
                for number in partitions
                for key in self._partitions[number].due(time, limit)
            ]
            if due:
                await self._run([], due)

    async def close(self) -> None:
        """Let go of all partitions for good, after the batch that is under way.

        A batch that takes too long is left: whoever loads its partitions next rolls it back.
        """
        try:
            async with asyncio.timeout(LAST_BATCH_S):
                await self._turn.acquire()  # and keep it: nothing is opened any more
        except TimeoutError:
            logger.warning("the last batch took too long and is left", group=self.processor.group)
            return
        # The lock is held, so no batch is under way.
        for states in self._partitions.values():
            await states.close()
        self._partitions = {}

    async def _open(self, partitions: Collection[int]) -> None:
        missing = sorted(set(partitions) - self._partitions.keys())
        opening = [
            PartitionStates.open_partition(self.processor, self._changelog(partition))
            for partition in missing
        ]
        self._partitions |= zip(missing, await asyncio.gather(*opening), strict=True)

    async def _run(self, records: Sequence[Record], due: Sequence[Key]) -> set[int]:
        """Process records and deadlines. Return the partitions whose commit failed."""
        partitions = {record.partition for record in records} | {partition for partition, _ in due}
        # Copies: the states keep their positions until the commit has succeeded.
        positions = {
            partition: self._partitions[partition].positions.copy() for partition in partitions
        }
        new = [record for record in records if positions[record.partition].take(record)]
        # In a thread: a judge may wait for a model, and the event loop must go on answering Kafka.
        batch = await asyncio.to_thread(
            batch_outcome, self.processor, _Cached(self._partitions), new, due, now()
        )
        return await self._commit(batch, positions)

    async def _commit(self, batch: Batch[S], positions: dict[int, Positions]) -> set[int]:
        changes: dict[int, dict[str, StateChange[S]]] = defaultdict(dict)
        for (partition, key), change in batch.changes.items():
            changes[partition][key] = change
        outputs: dict[int, list[NewRecord]] = defaultdict(list)
        for output in batch.outputs:
            outputs[output.partition].append(output.outgoing.record())
        committed = await asyncio.gather(
            *(
                self._commit_one(partition, changes[partition], reached, outputs[partition])
                for partition, reached in positions.items()
            )
        )
        return {partition for partition, done in zip(positions, committed, strict=True) if not done}

    async def _commit_one(
        self,
        partition: int,
        changes: dict[str, StateChange[S]],
        reached: Positions,
        outputs: list[NewRecord],
    ) -> bool:
        states = self._partitions[partition]
        try:
            await states.commit(changes, reached, outputs)
        except OutdatedError as error:
            logger.warning(
                "states are outdated and read again",
                group=self.processor.group,
                partition=partition,
                error=str(error),
            )
            # Removed before it is closed: `take` must open it anew, even if closing fails.
            del self._partitions[partition]
            await states.close()
            return False
        return True


class _Cached(Generic[S]):
    """The states of several partitions, for `batch_outcome`."""

    def __init__(self, partitions: dict[int, PartitionStates[S]]) -> None:
        self._partitions = partitions

    def get(self, key: Key) -> S | None:
        return self._partitions[key[0]].get(key[1])

    def clear(self) -> None:
        for states in self._partitions.values():
            states.clear()
