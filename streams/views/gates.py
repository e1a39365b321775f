"""The view of gates: what the gate of each logical name waits for."""

from collections.abc import Sequence
from typing import ClassVar

from schemas.envelope import AnyEvent
from schemas.gates import GateEvent, GateStatus
from schemas.topics import GATES, Topic


class Gates:
    """The status of gates by logical name: the last record of a name counts.

    Attributes:
        current: by logical name.
    """

    topics: ClassVar[Sequence[Topic]] = (GATES,)

    def __init__(self) -> None:
        self.current: dict[str, GateStatus] = {}

    def apply(self, event: AnyEvent) -> None:
        """Take in a status."""
        if isinstance(event, GateEvent):
            self.current[event.payload.name] = event.payload
