"""The view of open rollouts: begun and not ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from schemas.envelope import AnyEvent
from schemas.rollouts import TERMINAL, RolloutEvent, Split
from schemas.topics import ROLLOUTS, Topic


@dataclass
class OpenRollout:
    """A rollout that has begun and not ended.

    Attributes:
        began: its first event.
        checkpoints: the version of each logical name that it is pinned to; of two records that name
            a version, the later one counts.
        assigned: logical names whose use is recorded.
        split: the one that the agent named; before it did, the one of the first event.
        split_chosen: whether the agent named it.
    """

    began: RolloutEvent
    checkpoints: dict[str, str] = field(default_factory=dict)
    assigned: set[str] = field(default_factory=set)
    split: Split = "train"
    split_chosen: bool = False


class Rollouts:
    """Open rollouts by key (`schemas.envelope.rollout_key`).

    Attributes:
        open: in the order in which they began.
    """

    topics: ClassVar[Sequence[Topic]] = (ROLLOUTS,)

    def __init__(self) -> None:
        self.open: dict[str, OpenRollout] = {}

    def apply(self, event: AnyEvent) -> None:
        """Take in a change of a rollout's state."""
        if not isinstance(event, RolloutEvent):
            return
        # Forgotten when it ends, so that the view is as small as what is open.
        if event.payload.state in TERMINAL:
            self.open.pop(event.rollout_key, None)
        else:
            change = event.payload
            known = self.open.setdefault(event.rollout_key, OpenRollout(event, split=change.split))
            known.checkpoints.update(change.checkpoints)
            known.assigned.update(change.assigned)
            if change.split_chosen:
                known.split, known.split_chosen = change.split, True
