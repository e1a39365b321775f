"""A learner as a processor. It folds examples in the order of the log, and announces checkpoints
when they are due.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import orjson

from learners.contract import Learner, NewCheckpoint
from schemas.checkpoints import (
    Artifact,
    Checkpoint,
    CheckpointEvent,
    CheckpointState,
    Lineage,
    OffsetRange,
)
from schemas.envelope import AnyEvent
from schemas.examples import ExampleEvent
from schemas.topics import CHECKPOINTS, EXAMPLES, Topic
from streams.processing.processor import Outcome, Processor, output_id
from streams.storage.records import Outgoing, Record

S = TypeVar("S")


class ArtifactWriter(Protocol):
    """Stores bytes by their hash."""

    def put(self, content: bytes, media_type: str) -> Artifact:
        """Store bytes, which may be there already, and return their reference."""
        ...


@dataclass
class Learned(Generic[S]):
    """A learner's state with the offsets it contains.

    Attributes:
        ranges: topic and partition to the first and last offset folded.
        parent: version last announced.
    """

    state: S
    ranges: dict[str, list[int]] = field(default_factory=dict)
    parent: str | None = None

    def includes(self, source: Record) -> bool:
        """Return whether a record is already in the state."""
        known = self.ranges.get(_place(source))
        return known is not None and source.offset <= known[1]

    def extend(self, source: Record) -> None:
        """Note that a record is in the state now."""
        known = self.ranges.setdefault(_place(source), [source.offset, source.offset])
        known[1] = source.offset


class Learning(Processor[Learned[S]]):
    """Carries one learner.

    The consumer group is named by the learner's identity and configuration: with another
    configuration it is another group, which starts at the beginning of the log, so a learner never
    continues weights that it did not make.
    """

    topics: ClassVar[tuple[Topic, ...]] = (EXAMPLES,)

    def __init__(self, learner: Learner[S], artifacts: ArtifactWriter) -> None:
        self.learner = learner
        self.name = f"learn:{learner.target}:{learner.identity}:{learner.config_sha256[:8]}"
        self._artifacts = artifacts

    def concerns(self, source: Record) -> bool:
        """Return whether an example is for this learner; those of others may be large."""
        return self.state_key(source) == self.learner.target

    def handle(
        self, state: Learned[S] | None, event: AnyEvent, source: Record
    ) -> Outcome[Learned[S]]:
        """Fold an example; announce a checkpoint when one is due."""
        return self.handle_all(state, [event], source)

    def handle_all(
        self, state: Learned[S] | None, events: Sequence[AnyEvent], source: Record
    ) -> Outcome[Learned[S]]:
        """Fold a record's examples, unless the state contains them already. Announce a checkpoint
        if one is due.
        """
        examples = [event for event in events if isinstance(event, ExampleEvent)]
        learned = state or Learned(self.learner.initial())
        if learned.includes(source):
            return Outcome(state=learned)
        due = None
        for example in examples:
            learned.state = self.learner.fold(learned.state, example)
            # One announcement a record, the last: the earlier ones would be replaced at once.
            due = self.learner.checkpoint(learned.state) or due
        learned.extend(source)
        if due is None or due.version == learned.parent:
            return Outcome(state=learned)
        announcement = self._announcement(due, learned, examples[-1], source)
        learned.parent = due.version
        return Outcome((announcement,), learned)

    def _announcement(
        self, due: NewCheckpoint, learned: Learned[S], event: ExampleEvent, source: Record
    ) -> Outgoing:
        checkpoint = Checkpoint(
            name=due.name,
            version=due.version,
            kind=due.kind,
            state=CheckpointState.CANDIDATE,
            artifact=self._artifacts.put(due.artifact, due.media_type),
            lineage=Lineage(
                learner=self.learner.identity,
                config_sha256=self.learner.config_sha256,
                ranges=[
                    _range(place, first, last)
                    for place, (first, last) in sorted(learned.ranges.items())
                ],
                examples=due.examples,
                parent=learned.parent,
                # Optional in the contract: a learner that says nothing takes rewards back exactly.
                corrections=getattr(self.learner, "corrections", "exact"),
                uncorrected=due.uncorrected,
            ),
            metrics=due.metrics,
            reason=f"{due.examples} examples",
        )
        event_id = output_id(self, source, event.time)
        announced = CheckpointEvent(
            event_id=event_id, time=event.time, tenant=event.tenant, payload=checkpoint
        )
        return Outgoing.of(CHECKPOINTS, due.name, announced)

    def encode_state(self, state: Learned[S]) -> bytes:
        """Return one line of JSON with the offsets, then the learner's own bytes."""
        header = orjson.dumps(
            # Sorted keys: equal states must give equal bytes.
            {"ranges": state.ranges, "parent": state.parent},
            option=orjson.OPT_SORT_KEYS,
        )
        return header + b"\n" + self.learner.encode(state.state)

    def decode_state(self, value: bytes) -> Learned[S]:
        """Return the state that `encode_state` wrote."""
        header, _, body = value.partition(b"\n")
        document: dict[str, Any] = orjson.loads(header)
        return Learned(self.learner.decode(body), **document)


def _place(source: Record) -> str:
    return f"{source.topic}:{source.partition}"


def _range(place: str, first: int, last: int) -> OffsetRange:
    topic, _, partition = place.rpartition(":")
    return OffsetRange(topic=topic, partition=int(partition), first=first, last=last)
