"""Batches of examples for learners that do not learn online. A closed batch becomes a manifest."""

from collections.abc import Collection, Iterator
from datetime import datetime, timedelta
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from learners.drops import DropWatch
from learners.trial import Tally
from schemas.checkpoints import OffsetRange
from schemas.commands import Command, CommandEvent
from schemas.envelope import AnyEvent
from schemas.examples import ExampleEvent
from schemas.identifiers import derived_event_id
from schemas.manifests import Manifest
from schemas.serialization import UndecodableError, decode_all
from schemas.topics import COMMANDS, EXAMPLES, Topic
from streams.processing.processor import Outcome, Processor, output_id
from streams.storage.log import Log
from streams.storage.records import Outgoing, Record


class BatchConfig(BaseModel):
    """When a batch is closed. The first of these conditions closes it.

    Attributes:
        examples: a batch with this many examples is closed.
        seconds: a batch is closed this long after its first example. None: time closes no batch.
        drop: a batch is closed when its rewards are surely lower, by at least this much, than those
            of the batch before. None: a drop closes no batch. Rewards are in [0, 1].
        error: probability that `drop` closes a batch without a real drop, over all its tests.
        least: time and a drop close no batch that has fewer examples.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    examples: int = Field(default=256, ge=1)
    seconds: float | None = Field(default=None, gt=0.0)
    drop: float | None = Field(default=None, ge=0.0, lt=1.0)
    error: float = Field(default=0.05, gt=0.0, lt=0.5)
    least: int = Field(default=1, ge=1)


class OpenBatch(BaseModel):
    """A target's batch that is not closed yet.

    Attributes:
        ranges: first and last offset in it, by partition of the examples.
        number: how many batches were closed before.
        closes: when time closes it.
        rewards: tally of its examples' rewards.
        watch: compares its rewards with those of the batch before.
        dropped: whether they are surely lower.
    """

    examples: int = 0
    ranges: dict[int, tuple[int, int]] = {}
    number: int = 0
    closes: datetime | None = None
    rewards: Tally = Field(default_factory=Tally)
    watch: DropWatch | None = None
    dropped: bool = False

    def take(self, source: Record, event: ExampleEvent, config: BatchConfig) -> None:
        """Add an example, or what retracts one."""
        if event.payload.retracted and not self.examples:
            return  # of a batch before, which says by offsets what it holds
        # Retractions extend the range, too: the trainer must read them to leave their examples out.
        first, _ = self.ranges.get(source.partition, (source.offset, source.offset))
        self.ranges[source.partition] = (first, source.offset)
        if event.payload.retracted:
            return  # the trainer reads it, and leaves the example out
        self.examples += 1
        if self.closes is None and config.seconds is not None:
            self.closes = event.time + timedelta(seconds=config.seconds)
        self.rewards.take(event.payload.reward)
        if self.watch is not None:
            self.dropped = self.watch.dropped(event.payload.reward)

    def next_batch(self, config: BatchConfig) -> "OpenBatch":
        """Return the batch that begins when this one is closed.

        After a drop it has no watch: the rewards of a falling batch are no level to compare with.
        """
        watch = None
        if config.drop is not None and not self.dropped:
            watch = DropWatch.of(self.rewards, config.drop, config.error)
        return OpenBatch(number=self.number + 1, watch=watch)


class Batching(Processor[OpenBatch]):
    """Collects one head's examples for batch learners. When a batch is closed, it writes a command
    `train` with the batch's manifest.

    A command `train` without a manifest closes the target's open batches; if its arguments name a
    head, only that of this head. A command with a manifest is this processor's own, or repeats an
    earlier one. It closes nothing.

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

    def handle(
        self, state: OpenBatch | None, event: AnyEvent, source: Record
    ) -> Outcome[OpenBatch]:
        """Take in an example or a command."""
        batch = state or OpenBatch()
        target = self.state_key(source)
        if isinstance(event, ExampleEvent):
            if event.payload.body.head != self.head or event.payload.split != "train":
                return Outcome(state=batch, deadline=batch.closes)
            batch.take(source, event, self.config)
            reason = self._full(batch)
            if reason is None:
                return Outcome(state=batch, deadline=batch.closes)
            return self._close(
                batch, target, output_id(self, source, event.time), event.time, reason
            )
        assert isinstance(event, CommandEvent)  # noqa: S101 - the topics hold nothing else
        order = event.payload
        meant = (
            order.action == "train"
            and order.manifest is None
            and order.arguments.get("head") in (None, self.head)
        )
        if not meant or not batch.examples:
            return Outcome(state=batch, deadline=batch.closes)
        reason = order.reason or "asked for"
        return self._close(
            batch, target, output_id(self, source, event.time), event.time, reason, order.arguments
        )

    def expire(self, state: OpenBatch, key: str, now: datetime) -> Outcome[OpenBatch]:
        """Close a batch that is old enough. A batch that is too small waits for more examples."""
        if self.config.seconds is None or state.examples < self.config.least:
            return Outcome(state=state)
        # The number tells this closing from later ones; there is no record to derive an id from.
        event_id = derived_event_id(now, self.name, "old", key, str(state.number))
        return self._close(
            state, key, event_id, now, f"{self.config.seconds:g} s since its first example"
        )

    def encode_state(self, state: OpenBatch) -> bytes:
        """Return the batch as JSON."""
        return state.model_dump_json().encode()

    def decode_state(self, value: bytes) -> OpenBatch:
        """Return the batch from JSON."""
        return OpenBatch.model_validate_json(value)

    def _full(self, batch: OpenBatch) -> str | None:
        """Return why a batch is to be closed now."""
        if batch.examples >= self.config.examples:
            return f"{batch.examples} examples"
        if batch.examples < self.config.least:
            return None
        if batch.dropped:
            return f"rewards dropped, to {batch.rewards.mean:.3f} on average"
        return None

    def _close(
        self,
        batch: OpenBatch,
        target: str,
        event_id: str,
        time: datetime,
        reason: str,
        arguments: dict[str, JsonValue] | None = None,
    ) -> Outcome[OpenBatch]:
        manifest = Manifest(
            target=target,
            head=self.head,
            ranges=[
                OffsetRange(topic=EXAMPLES.name, partition=partition, first=first, last=last)
                for partition, (first, last) in sorted(batch.ranges.items())
            ],
            examples=batch.examples,
            number=batch.number + 1,
        )
        order = Command(
            target=target,
            action="train",
            manifest=manifest,
            arguments=arguments or {},
            reason=reason,
        )
        event = CommandEvent(event_id=event_id, time=time, payload=order)
        return Outcome((Outgoing.of(COMMANDS, target, event),), batch.next_batch(self.config))


def examples_of(log: Log, manifest: Manifest) -> Iterator[ExampleEvent]:
    """Yield a manifest's examples in the order of the log, each once."""
    for found in manifest.ranges:
        # In parts of 500 records: a manifest may cover more than memory holds.
        offset = found.first
        while offset <= found.last:
            records = log.read(found.topic, found.partition, offset, 500)
            if not records:
                return
            for record in records:
                if record.offset <= found.last:
                    yield from _examples_in(record, manifest)
            offset = records[-1].offset + 1


def _examples_in(record: Record, manifest: Manifest) -> Iterator[ExampleEvent]:
    # Several names share a partition, so a range holds examples of others, too.
    if record.key != manifest.target.encode():
        return
    try:
        events = decode_all(ExampleEvent, record.value)
    except UndecodableError:
        return  # it is a dead letter, and was not counted
    for event in events:
        if event.payload.body.head == manifest.head and event.payload.split == "train":
            yield event
