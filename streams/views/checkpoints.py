"""The view of checkpoints: each with its latest state, merged from all its events."""

from collections.abc import Sequence
from typing import ClassVar

from learners.registry import merge
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState
from schemas.envelope import AnyEvent
from schemas.topics import CHECKPOINTS, Topic


class Checkpoints:
    """Checkpoints by name and version, in the order in which they were announced.

    Attributes:
        all: each merged from its records by `learners.registry.merge`.
    """

    topics: ClassVar[Sequence[Topic]] = (CHECKPOINTS,)

    def __init__(self) -> None:
        self.all: dict[tuple[str, str], Checkpoint] = {}

    def apply(self, event: AnyEvent) -> None:
        """Take in a change of a checkpoint's state."""
        if isinstance(event, CheckpointEvent):
            change = event.payload
            # A change says only what changed, so artifact and lineage come from the first record.
            known = self.all.get((change.name, change.version))
            self.all[change.name, change.version] = merge(known, change) if known else change

    def of(self, name: str) -> dict[str, Checkpoint]:
        """Return the checkpoints of a logical name by version."""
        return {version: found for (of, version), found in self.all.items() if of == name}

    def promoted(self, name: str) -> Checkpoint | None:
        """Return the promoted version of a name; None if there is none."""
        promoted = (c for c in self.of(name).values() if c.state is CheckpointState.PROMOTED)
        return next(promoted, None)
