"""The contract of a view."""

from collections.abc import Sequence
from typing import Protocol

from schemas.envelope import AnyEvent
from schemas.topics import Topic


class View(Protocol):
    """A fold of the events of its topics: no log, no clock, no other input.

    The same events in the order of the log give the same view. An event that comes twice changes
    nothing the second time. All records of one key lie in one partition, so their order is the same
    for every reader; between keys there is no order, and no view may depend on one.
    """

    @property
    def topics(self) -> Sequence[Topic]:
        """The topics whose events it takes."""
        ...

    def apply(self, event: AnyEvent) -> None:
        """Take in one event of these topics."""
        ...
