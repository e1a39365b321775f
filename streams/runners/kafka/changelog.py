"""The changelog of a partition on Kafka, through aiokafka."""

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from streams.runners.kafka.states import OutdatedError
from streams.storage.kafka.cluster import Cluster
from streams.storage.kafka.layout import changelog_of
from streams.storage.records import MAX_RECORD_BYTES, NewRecord, Record

ACKNOWLEDGED_IN_S = 30.0
"""After this the connection is given up and made anew."""

CLOSED_IN_S = 5.0
TRANSACTION_TIMEOUT_MS = 60_000
FAILURES = (KafkaError, TimeoutError, OSError)
logger = structlog.get_logger(__name__)


class TransactionalChangelog:
    """A partition of a group's changelog, written in transactions. Satisfies
    `streams.runners.kafka.states.Changelog`.

    The transactional id names group and partition, so Kafka refuses the producer of an earlier
    worker from the moment that a later one loads (KIP-98).
    """

    def __init__(self, cluster: Cluster, group: str, partition: int) -> None:
        self._cluster = cluster
        self._place = TopicPartition(cluster.prefixed(changelog_of(group)), partition)
        self._id = cluster.prefixed(f"{group}-{partition}")
        self._producer: Any = None

    async def load(self) -> Sequence[Record]:
        """Shut out every earlier writer. Return all that is stored.

        It waits for the cluster without limit: without its states a partition cannot go on.
        """
        async for attempt in _patiently():
            with attempt:
                # An attempt that failed may have left a producer that still holds the id.
                await self.close()
                async with asyncio.timeout(ACKNOWLEDGED_IN_S):
                    self._producer = AIOKafkaProducer(
                        **self._cluster.client_options,
                        acks="all",
                        max_request_size=2 * MAX_RECORD_BYTES,
                        transactional_id=self._id,
                        transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
                    )
                    await self._producer.start()  # ends what an earlier writer left open
                return await self._read_states()
        # For the type checker: the loop above ends only by its return.
        raise AssertionError("unreachable: it is tried until it succeeds")

    async def commit(self, states: Sequence[NewRecord], outputs: Sequence[NewRecord]) -> None:
        """Write states to the changelog and outputs to their topics, all or none.

        Raises:
            OutdatedError: none was written, or it is not known whether they were.
        """
        topic, partition = self._place
        try:
            async with asyncio.timeout(ACKNOWLEDGED_IN_S):
                # Outputs and states in one transaction: neither is ever there without the other.
                await self._producer.begin_transaction()
                for output in outputs:
                    await self._send(self._cluster.prefixed(output.topic), output)
                for state in states:
                    await self._send(topic, state, partition)
                await self._producer.commit_transaction()
        except FAILURES as error:
            # A commit whose answer was lost may have succeeded. Only reading the states tells.
            raise OutdatedError(f"{type(error).__name__} {error}") from error

    async def close(self) -> None:
        """Release the connection. The next `load` rolls an open transaction back."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await _stop(producer)

    async def _send(self, topic: str, record: NewRecord, partition: int | None = None) -> None:
        headers = list(record.headers)
        await self._producer.send(
            topic, record.value, record.key, partition=partition, headers=headers
        )

    async def _read_states(self) -> list[Record]:
        consumer = AIOKafkaConsumer(
            **self._cluster.client_options,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=MAX_RECORD_BYTES,
        )
        await consumer.start()
        try:
            consumer.assign([self._place])
            # `load` has ended all open transactions, so this end can be reached.
            end = (await consumer.end_offsets([self._place]))[self._place]
            consumer.seek(self._place, 0)
            stored: list[Record] = []
            while await consumer.position(self._place) < end:
                fetched = await consumer.getmany(self._place, timeout_ms=500)
                stored += [
                    _record(message) for messages in fetched.values() for message in messages
                ]
            return stored
        finally:
            await consumer.stop()


async def _stop(producer: Any) -> None:
    """Stop a producer. If it still waits for the cluster after `CLOSED_IN_S`, cut it off."""
    try:
        async with asyncio.timeout(CLOSED_IN_S):
            await producer.stop()
    except FAILURES as error:
        logger.info(
            "a producer did not stop and is cut off", error=f"{type(error).__name__} {error}"
        )
        if producer._sender is not None:
            await producer._sender.close()
        await producer.client.close()


def _patiently() -> AsyncRetrying:
    return AsyncRetrying(
        retry=retry_if_exception_type(FAILURES),
        wait=wait_random_exponential(multiplier=0.1, max=10),
        before_sleep=_warn,
    )


def _warn(attempt: RetryCallState) -> None:
    error = attempt.outcome.exception() if attempt.outcome else None
    logger.warning("Kafka does not answer, trying again", error=f"{type(error).__name__} {error}")


def _record(message: Any) -> Record:
    headers = tuple((str(name), bytes(value)) for name, value in message.headers)
    return Record(
        message.topic,
        message.partition,
        message.offset,
        message.timestamp,
        message.key,
        message.value,
        headers,
    )
