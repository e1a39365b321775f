"""The log on Apache Kafka, through kafka-python."""

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal, Self

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata, TopicPartition
from tenacity import (
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from schemas.clock import to_milliseconds
from streams.storage.errors import LogUnavailableError
from streams.storage.kafka.cluster import Cluster
from streams.storage.kafka.layout import changelog_of, state_key
from streams.storage.log import read_all
from streams.storage.records import MAX_RECORD_BYTES, NewRecord, Record

KNOCK_S = 2.0
ABANDONED_IN_S = 10.0

_POLL_MS = 100


class KafkaLog:
    """A log on a Kafka cluster, whose topics must be there (`streams.runners.kafka.topics`).
    Satisfies `streams.storage.log.Log`.

    Clients are made when they are first needed. An instance belongs to one thread.

    Args:
        timeout_s: longest wait for the cluster before LogUnavailableError.
    """

    def __init__(self, cluster: Cluster, timeout_s: float = 30.0) -> None:
        self._timeout_s = timeout_s
        self._cluster = cluster
        self._clients: dict[type, Any] = {}
        self._at: dict[TopicPartition, int] = {}

    def append(self, records: Sequence[NewRecord]) -> list[tuple[int, int]]:
        """Write records; every in-sync replica has them when this returns.

        After an error some may be there: appending them again writes them twice, with the same
        event ids.
        """
        with self._translate_errors("write to"):
            producer = self._producer()
            sent = [
                producer.send(
                    self._cluster.prefixed(record.topic),
                    key=record.key,
                    value=record.value,
                    headers=list(record.headers),
                )
                for record in records
            ]
            producer.flush(timeout=self._timeout_s)
            written = [future.get(timeout=self._timeout_s) for future in sent]
        return [(metadata.partition, metadata.offset) for metadata in written]

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        """Return up to `limit` records at or after `offset`, in order; none only at the partition's
        end.
        """
        return self.fetch({(topic, partition): offset}, limit)

    def fetch(
        self, positions: Mapping[tuple[str, int], int], limit: int, wait_s: float = 0.0
    ) -> list[Record]:
        """Return up to `limit` records at or after the given offsets, each partition in order.

        Returns none only when nothing lies after the offsets, and nothing has come for `wait_s`.
        """
        deadline = time.monotonic() + wait_s
        with self._translate_errors("read from"):
            consumer = self._consumer()
            wanted = {self._place(*place): offset for place, offset in positions.items()}
            # To assign again drops what was fetched ahead, so it is done only for other partitions.
            if consumer.assignment() != wanted.keys():
                consumer.assign(list(wanted))
                self._at = {}
            for place, offset in wanted.items():
                # A seek drops what was fetched ahead, too. A reader that goes on where it stopped
                # needs none.
                if self._at.get(place) != offset:
                    consumer.seek(place, offset)
            self._at = wanted
            while True:
                polled = consumer.poll(timeout_ms=_POLL_MS, max_records=limit)
                records = [self._record(found) for batch in polled.values() for found in batch]
                self._at |= {self._place(r.topic, r.partition): r.offset + 1 for r in records}
                # An empty poll may only mean that the answer is not here yet. So the ends are asked
                # for, too.
                if records or (time.monotonic() >= deadline and self._at_ends(consumer, wanted)):
                    return records

    def _at_ends(self, consumer: Any, wanted: Iterable[TopicPartition]) -> bool:
        ends = self._bounds("end_offsets", list(wanted))
        return all(consumer.position(place) >= end for place, end in ends.items())

    def beginnings(self, topic: str) -> Mapping[int, int]:
        """Return the first offset still there, by partition."""
        with self._translate_errors("read from"):
            return _by_partition(self._bounds("beginning_offsets", self._partitions(topic)))

    def ends(self, topic: str) -> Mapping[int, int]:
        """Return the offset the next record will get, by partition."""
        with self._translate_errors("read from"):
            return _by_partition(self._bounds("end_offsets", self._partitions(topic)))

    def offset_at(self, topic: str, partition: int, time: datetime) -> int:
        """Return the offset of the first record appended at or after `time`, or the end."""
        place = self._place(topic, partition)
        with self._translate_errors("read from"):
            found = self._consumer().offsets_for_times({place: to_milliseconds(time)})[place]
        return self.ends(topic)[partition] if found is None else int(found.offset)

    def committed(
        self, group: str, topics: Iterable[str], partitions: Iterable[int]
    ) -> dict[tuple[str, int], int]:
        """Return the next offset of a group, by topic and partition; 0 if it has read nothing."""
        wanted, name = list(partitions), self._cluster.prefixed(group)
        with self._translate_errors("read from"):
            found = self._patient(lambda admin: admin.list_group_offsets({name: None})[name])
        return {
            (topic, partition): known.offset
            if (known := found.get(self._place(topic, partition)))
            else 0
            for topic in topics
            for partition in wanted
        }

    def unread(self, positions: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
        """Return an upper bound of the records at or after the given offsets; 0 means that there
        are none. Markers of transactions are counted too.
        """
        with self._translate_errors("read from"):
            ends = self._bounds("end_offsets", [self._place(*place) for place in positions])
        lag = {
            place: max(ends[self._place(*place)] - offset, 0) for place, offset in positions.items()
        }
        behind = {place: positions[place] for place, count in lag.items() if count}
        read: set[tuple[str, int]] = set()
        # Markers of transactions take offsets. Only a read shows whether a record lies behind one.
        while rest := {place: offset for place, offset in behind.items() if place not in read}:
            records = self.fetch(rest, len(rest))
            if not records:
                # Nothing can be read there: only markers are left.
                return lag | dict.fromkeys(rest, 0)
            read |= {(record.topic, record.partition) for record in records}
        return lag

    def commit(self, group: str, positions: Mapping[tuple[str, int], int]) -> None:
        """Store the next offsets of a group that has no other members."""
        offsets = {
            self._place(*place): OffsetAndMetadata(offset, "", -1)
            for place, offset in positions.items()
        }
        with self._translate_errors("commit to"):
            results = self._patient(
                lambda admin: admin.alter_group_offsets(self._cluster.prefixed(group), offsets)
            )
        for place, error in results.items():
            if error.errno:
                raise LogUnavailableError(
                    f"Kafka did not commit {group} at {place.topic}[{place.partition}]: {error}"
                )

    def state(self, group: str, key: str) -> bytes | None:
        """Return a processor's state for a key as it was last stored; None if there is none."""
        stored: bytes | None = None
        # Kafka has no lookup by key. Commands ask for one state now and then, so reading all is
        # enough.
        for record in read_all(self, changelog_of(group)):
            if record.key == state_key(key):
                stored = record.value
        return stored

    def close(self) -> None:
        """Close the connections. Records that were not acknowledged may be lost; their `append` has
        not returned.
        """
        for client in self._clients.values():
            if isinstance(client, KafkaProducer):
                _abandon(client)
            client.close()
        self._clients = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _partitions(self, topic: str) -> list[TopicPartition]:
        known = self._consumer().partitions_for_topic(self._cluster.prefixed(topic))
        if not known:
            raise LogUnavailableError(
                f"Kafka has no topic {topic}; `everloop topics apply` declares it"
            )
        return [self._place(topic, partition) for partition in sorted(known)]

    def _producer(self) -> Any:
        timeout_ms = int(self._timeout_s * 1000)
        return self._client(
            KafkaProducer,
            # All in-sync replicas have a record before it is acknowledged.
            acks="all",
            # Without it, a retry after a lost acknowledgement writes a record twice.
            enable_idempotence=True,
            # A dead letter may be twice as large as a record.
            max_request_size=2 * MAX_RECORD_BYTES,
            max_block_ms=timeout_ms,
            delivery_timeout_ms=timeout_ms,
            request_timeout_ms=timeout_ms,
            # Callers wait for the acknowledgement; lingering would only add to their time.
            linger_ms=0,
        )

    def _consumer(self) -> Any:
        return self._client(
            KafkaConsumer,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            # Outputs of transactions that were aborted are no events.
            isolation_level="read_committed",
            max_partition_fetch_bytes=MAX_RECORD_BYTES,
        )

    def _bounds(
        self, which: Literal["beginning_offsets", "end_offsets"], places: list[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Return where partitions begin or end.

        If a broker hangs up meanwhile, kafka-python leaves its partitions out, and then fails on
        that. So the question is repeated.

        kafka-python leaves out those whose broker hangs up in between, and stumbles over it; they
        are asked for again.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(KeyError),
            stop=stop_after_delay(self._timeout_s),
            wait=wait_random_exponential(multiplier=0.05, max=1.0),
            reraise=True,
        )
        try:
            offsets: dict[TopicPartition, int] = retrying(getattr(self._consumer(), which), places)
        except KeyError as error:
            raise LogUnavailableError(f"the leader of {error} does not answer") from error
        return offsets

    def _patient(self, ask: Callable[[Any], Any]) -> Any:
        """Ask again until the group's coordinator answers. A cluster that is new, or has lost a
        broker, elects it first.
        """
        retrying = Retrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, KafkaError) and error.retriable
            ),
            stop=stop_after_delay(self._timeout_s),
            wait=wait_random_exponential(multiplier=0.05, max=1.0),
            reraise=True,
        )
        return retrying(lambda: ask(self._client(KafkaAdminClient)))

    def _client(self, kind: type, **options: Any) -> Any:
        if kind not in self._clients:
            # A client tries to connect for its whole timeout, also where nothing listens.
            knock(self._cluster.servers, min(KNOCK_S, self._timeout_s))
            self._clients[kind] = kind(
                **self._cluster.client_options,
                bootstrap_timeout_ms=int(self._timeout_s * 1000),
                **options,
            )
        return self._clients[kind]

    @contextmanager
    def _translate_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except KafkaError as error:
            at, hint = self._cluster.bootstrap, self._cluster.login_hint
            raise LogUnavailableError(
                f"cannot {doing} Kafka at {at}: {type(error).__name__} {error}{hint}"
            ) from error

    def _place(self, topic: str, partition: int) -> TopicPartition:
        return TopicPartition(self._cluster.prefixed(topic), partition)

    def _record(self, found: Any) -> Record:
        headers = tuple((str(name), bytes(value)) for name, value in found.headers)
        topic = self._cluster.ours(found.topic)
        return Record(
            topic, found.partition, found.offset, found.timestamp, found.key, found.value, headers
        )


def _abandon(producer: Any) -> None:
    """End a producer's thread without sending the records that are left. Their `append` has raised
    already.

    The producer's own `close` flushes first, and does not close if that fails. Its thread would
    send the records when the cluster is back. By then the caller may have written them elsewhere.

    Its own `close` flushes first, and gives up closing when that fails: the thread would go on and
    send the records when the cluster is back, after whoever appended them has put them elsewhere.
    """
    sender = producer._sender
    sender.force_close()
    sender.join(ABANDONED_IN_S)


def knock(servers: Sequence[str], timeout_s: float = KNOCK_S) -> None:
    """Return when a broker accepts a connection. Kafka's clients would try for their whole timeout.

    Raises:
        LogUnavailableError: none does.
    """
    for server in servers:
        host, _, port = server.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
        except (OSError, ValueError) as error:
            reason = str(error)
        else:
            return
    raise LogUnavailableError(f"no Kafka at {','.join(servers)}: {reason}")


def _by_partition(offsets: Mapping[TopicPartition, int]) -> dict[int, int]:
    return {place.partition: offset for place, offset in sorted(offsets.items())}
