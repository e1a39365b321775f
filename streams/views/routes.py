"""The view of routes: what serves each logical name now, and what served it before."""

from collections.abc import Sequence
from typing import ClassVar

from schemas.envelope import AnyEvent
from schemas.routes import Route, RouteEvent
from schemas.topics import ROUTES, Topic


class Routes:
    """Routes by logical name: the last record of a name counts.

    A route's `history` is folded from the records that are still there, and begins with the history
    that the first of them carries. So it outlives the compaction of the topic.

    Attributes:
        current: by logical name, each with its history.
    """

    topics: ClassVar[Sequence[Topic]] = (ROUTES,)

    def __init__(self) -> None:
        self.current: dict[str, Route] = {}

    def apply(self, event: AnyEvent) -> None:
        """Take in a route."""
        if isinstance(event, RouteEvent):
            route = event.payload
            self.current[route.name] = route.with_history_after(self.current.get(route.name))
