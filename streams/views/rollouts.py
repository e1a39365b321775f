"""The rollouts that have begun and not ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from schemas.envelope import AnyEvent
from schemas.rollouts import TERMINAL, RolloutEvent
from schemas.topics import ROLLOUTS, Topic


@dataclass
class OpenRollout:
    """A rollout that has begun and not ended.

    Attributes:
        began: its first event.
        checkpoints: the version of each logical name that it is pinned to; of two records that name
            a version, the later one counts.
    """

    began: RolloutEvent
    checkpoints: dict[str, str] = field(default_factory=dict)


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
        if event.payload.state in TERMINAL:
            self.open.pop(event.rollout_key, None)
        else:
            known = self.open.setdefault(event.rollout_key, OpenRollout(event))
            known.checkpoints.update(event.payload.checkpoints)
