"""Batches for learners that train now and then: closed by a number of lessons or by a command, written as manifests."""

from collections.abc import Collection, Iterator
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.checkpoints import OffsetRange
from schemas.commands import Command, CommandEvent
from schemas.envelope import AnyEvent
from schemas.examples import ExampleEvent
from schemas.manifests import Manifest
from schemas.serialization import UndecodableError, decode_all
from schemas.topics import COMMANDS, EXAMPLES, Topic
from streams.log import Log
from streams.processor import Outcome, Processor, output_id
from streams.records import Outgoing, Record


class BatchConfig(BaseModel):
    """When a batch is closed.

    Attributes:
        lessons: so many close a batch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lessons: int = Field(default=256, ge=1)


class OpenBatch(BaseModel):
    """A target's batch that is not closed yet.

    Attributes:
        ranges: topic and partition to the first and last offset in it.
        number: how many batches were closed before.
    """

    lessons: int = 0
    ranges: dict[int, tuple[int, int]] = {}
    number: int = 0

    def extended(self, source: Record) -> "OpenBatch":
        """Return the batch with one lesson more."""
        first, _ = self.ranges.get(source.partition, (source.offset, 0))
        ranges = self.ranges | {source.partition: (first, source.offset)}
        return self.model_copy(update={"lessons": self.lessons + 1, "ranges": ranges})


class Batching(Processor[OpenBatch]):
    """Collects one head's lessons for batch learners, and says `train` with a manifest when a batch is full.

    A command `train` without a manifest closes batches that are not full; one with a manifest is our own, or asks for
    what was asked before.

    Args:
        targets: logical names of what learns from this head.
    """

    topics: ClassVar[tuple[Topic, ...]] = (EXAMPLES, COMMANDS)

    def __init__(self, head: str, targets: Collection[str], config: BatchConfig) -> None:
        self.name = f"batches:{head}"
        self.head = head
        self.targets = frozenset(targets)
        self.config = config

    def concerns(self, source: Record) -> bool:
        """Return whether a record is for one of the learners."""
        return self.state_key(source) in self.targets

    def handle(self, state: OpenBatch | None, event: AnyEvent, source: Record) -> Outcome[OpenBatch]:
        """Take in a lesson or a command."""
        batch = state or OpenBatch()
        target = self.state_key(source)
        if isinstance(event, ExampleEvent):
            if event.payload.body.head != self.head or event.payload.split != "train":
                return Outcome(state=batch)
            batch = batch.extended(source)
            if batch.lessons < self.config.lessons:
                return Outcome(state=batch)
            return self._closed(batch, target, event, source, f"{batch.lessons} lessons")
        assert isinstance(event, CommandEvent)  # noqa: S101 - the topics hold nothing else
        order = event.payload
        if order.action != "train" or order.manifest is not None or not batch.lessons:
            return Outcome(state=batch)
        return self._closed(batch, target, event, source, order.reason or "asked for")

    def encode_state(self, state: OpenBatch) -> bytes:
        """Return the batch as JSON."""
        return state.model_dump_json().encode()

    def decode_state(self, value: bytes) -> OpenBatch:
        """Return the batch from JSON."""
        return OpenBatch.model_validate_json(value)

    def _closed(
        self, batch: OpenBatch, target: str, event: AnyEvent, source: Record, reason: str
    ) -> Outcome[OpenBatch]:
        manifest = Manifest(
            target=target,
            head=self.head,
            ranges=[
                OffsetRange(topic=EXAMPLES.name, partition=partition, first=first, last=last)
                for partition, (first, last) in sorted(batch.ranges.items())
            ],
            lessons=batch.lessons,
            number=batch.number + 1,
        )
        order = CommandEvent(
            event_id=output_id(self, source, event.time),
            time=event.time,
            tenant=event.tenant,
            payload=Command(target=target, action="train", manifest=manifest, reason=reason),
        )
        return Outcome((Outgoing.of(COMMANDS, target, order),), OpenBatch(number=manifest.number))


def lessons_of(log: Log, manifest: Manifest) -> Iterator[ExampleEvent]:
    """Yield a manifest's lessons in the order of the log, each once."""
    for found in manifest.ranges:
        offset = found.first
        while offset <= found.last:
            records = log.read(found.topic, found.partition, offset, 500)
            if not records:
                return
            for record in records:
                if record.offset <= found.last:
                    yield from _meant(record, manifest)
            offset = records[-1].offset + 1


def _meant(record: Record, manifest: Manifest) -> Iterator[ExampleEvent]:
    if record.key != manifest.target.encode():
        return
    try:
        events = decode_all(ExampleEvent, record.value)
    except UndecodableError:
        return  # it is a dead letter, and was not counted
    for event in events:
        if event.payload.body.head == manifest.head and event.payload.split == "train":
            yield event
