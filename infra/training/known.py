"""What the log says of models that are trained: orders, runs, checkpoints and routes, folded anew by each trainer."""

from collections.abc import Collection
from dataclasses import dataclass, field

from learners.registry import merged
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState
from schemas.commands import CommandEvent
from schemas.endpoints import Endpoint
from schemas.envelope import AnyEvent
from schemas.routes import Route, RouteEvent
from schemas.trainings import Training, TrainingEvent


@dataclass
class Known:
    """The fold.

    Attributes:
        targets: logical names that are trained here; orders to others are for somebody else.
        trainings: by the order that asked for it, as each stands.
        checkpoints: by name and version, each with all that was said of it.
        orders: those not taken yet, to train and to cancel, in the order they were given.
    """

    targets: Collection[str]
    trainings: dict[str, Training] = field(default_factory=dict)
    checkpoints: dict[tuple[str, str], Checkpoint] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    orders: list[CommandEvent] = field(default_factory=list)

    def take(self, event: AnyEvent) -> None:
        """Take in what happened."""
        match event:
            case TrainingEvent(payload=training):
                self.trainings[training.order] = training
            case CheckpointEvent(payload=change):
                before = self.checkpoints.get((change.name, change.version))
                self.checkpoints[change.name, change.version] = merged(before, change) if before else change
            case RouteEvent(payload=route):
                self.routes[route.name] = route
            case CommandEvent(payload=order) if order.target in self.targets:
                if order.action == "cancel" or (order.action == "train" and order.manifest is not None):
                    self.orders.append(event)
            case _:
                pass

    def promoted(self, name: str) -> Checkpoint | None:
        """Return the version of a name that serves, if one was promoted."""
        found = (c for c in self.checkpoints.values() if c.name == name and c.state is CheckpointState.PROMOTED)
        return next(found, None)

    def serving(self, name: str) -> Endpoint | None:
        """Return where most calls of a name go now."""
        route = self.routes.get(name)
        return max(route.targets, key=lambda target: target.weight).endpoint if route is not None else None
