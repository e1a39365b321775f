"""What each logical name serves, and what it served before."""

from collections.abc import Iterable

from schemas.audit import AuditEvent
from schemas.envelope import AnyEvent
from schemas.routes import Route, RouteEvent


def served_versions(route: Route) -> list[str]:
    """Return the versions that new rollouts may get."""
    return [target.version for target in route.targets if target.weight > 0]


class RouteHistory:
    """What one name has served, the newest last, without what was rolled back.

    Two routes are the same step if they serve the same versions; weights do not matter. Serving an
    earlier step again goes back to it and forgets what came after. So rolling back twice goes back
    two steps.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps: list[Route] = []

    def apply(self, event: AnyEvent) -> None:
        """Take in a route, or an audit entry: it keeps routes that compaction has removed."""
        match event:
            case RouteEvent(payload=route) if route.name == self.name:
                self._serve(route)
            case AuditEvent(payload=audit) if audit.subject == self.name and (
                audit.action.startswith("routes.")
            ):
                for document in (audit.before, audit.after):
                    if document is not None:
                        self._serve(Route.model_validate(document))
            case _:
                pass

    def _serve(self, route: Route) -> None:
        versions = set(served_versions(route))
        for place, step in enumerate(self.steps):
            if set(served_versions(step)) == versions:
                del self.steps[place:]
                break
        self.steps.append(route)


def newest_routes(events: Iterable[AnyEvent]) -> dict[str, Route]:
    """Return what is served, by logical name: the last route of each counts."""
    return {e.payload.name: e.payload for e in events if isinstance(e, RouteEvent)}
