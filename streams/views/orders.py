"""The view of orders to batch learners."""

from collections.abc import Sequence
from typing import ClassVar

from schemas.commands import CommandEvent
from schemas.envelope import AnyEvent
from schemas.topics import COMMANDS, Topic


class Orders:
    """Orders, those to each target in the order in which they were given. An order that comes twice
    counts once.

    Attributes:
        all: by event id.
    """

    topics: ClassVar[Sequence[Topic]] = (COMMANDS,)

    def __init__(self) -> None:
        self.all: dict[str, CommandEvent] = {}

    def apply(self, event: AnyEvent) -> None:
        """Take in an order."""
        if isinstance(event, CommandEvent):
            # An append that is repeated after an error may write an order twice.
            self.all.setdefault(event.event_id, event)
