"""The view of changes by hand."""

from collections.abc import Sequence
from typing import ClassVar

from schemas.audit import AuditEvent
from schemas.envelope import AnyEvent
from schemas.topics import AUDIT, Topic


class AuditTrail:
    """Every change by hand.

    Attributes:
        entries: the oldest first.
    """

    topics: ClassVar[Sequence[Topic]] = (AUDIT,)

    def __init__(self) -> None:
        self.entries: list[AuditEvent] = []

    def apply(self, event: AnyEvent) -> None:
        """Take in a change."""
        if isinstance(event, AuditEvent):
            self.entries.append(event)
