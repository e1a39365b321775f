"""The view of trainings: every run of a batch learner with its state."""

from collections.abc import Sequence
from typing import ClassVar

from schemas.envelope import AnyEvent
from schemas.topics import TRAININGS, Topic
from schemas.trainings import Training, TrainingEvent


class Trainings:
    """Runs by the order that asked for them: the last record of an order counts.

    Attributes:
        runs: by the event id of the order.
    """

    topics: ClassVar[Sequence[Topic]] = (TRAININGS,)

    def __init__(self) -> None:
        self.runs: dict[str, Training] = {}

    def apply(self, event: AnyEvent) -> None:
        """Take in how a run stands."""
        if isinstance(event, TrainingEvent):
            self.runs[event.payload.order] = event.payload
