"""What the log says of models that are trained: orders, runs, checkpoints and routes, folded anew
by each trainer.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from learners.registry import merged
from schemas.checkpoints import Checkpoint, CheckpointEvent, CheckpointState
from schemas.commands import CommandEvent
from schemas.endpoints import Endpoint
from schemas.envelope import AnyEvent
from schemas.routes import Route, RouteEvent
from schemas.topics import CHECKPOINTS, COMMANDS, ROUTES, TRAININGS
from schemas.trainings import ENDED, Training, TrainingEvent, TrainingState
from streams.storage.log import Log
from streams.views.events import events_of

REFUSED = frozenset({CheckpointState.REJECTED, CheckpointState.ROLLED_BACK})


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
                self.checkpoints[change.name, change.version] = (
                    merged(before, change) if before else change
                )
            case RouteEvent(payload=route):
                self.routes[route.name] = route
            case CommandEvent(payload=order) if order.target in self.targets:
                if order.action == "cancel" or (
                    order.action == "train" and order.manifest is not None
                ):
                    self.orders.append(event)
            case _:
                pass

    def promoted(self, name: str) -> Checkpoint | None:
        """Return the version of a name that serves, if one was promoted."""
        found = (
            c
            for c in self.checkpoints.values()
            if c.name == name and c.state is CheckpointState.PROMOTED
        )
        return next(found, None)

    def failed(self, target: str, parent: str | None) -> set[str]:
        """Return the configurations whose last run on these weights gave nothing that came to
        serve, by their hash.
        """
        came_to: dict[str, bool] = {}
        for training in self.trainings.values():
            if (
                training.target != target
                or training.parent != parent
                or training.state not in ENDED
            ):
                continue
            made = self.checkpoints.get((target, training.version or ""))
            failed = training.state is TrainingState.FAILED or (
                made is not None and made.state in REFUSED
            )
            came_to[training.config_sha256] = failed
        return {config for config, failed in came_to.items() if failed}

    def serving(self, name: str) -> Endpoint | None:
        """Return where most calls of a name go now."""
        route = self.routes.get(name)
        return (
            max(route.targets, key=lambda target: target.weight).endpoint
            if route is not None
            else None
        )


class Following:
    """Reads the topics that tell of training, each from its beginning, into what is known.

    Args:
        targets: as of `Known`.
    """

    topics = (TRAININGS, CHECKPOINTS, ROUTES, COMMANDS)

    def __init__(self, log: Log, targets: Collection[str]) -> None:
        self.known = Known(targets)
        self._log = log
        self._positions = {
            (t.name, p): begin for t in self.topics for p, begin in log.beginnings(t.name).items()
        }

    def read(self) -> Known:
        """Take in what is new, and return all."""
        while records := self._log.fetch(self._positions, 500):
            for record in records:
                self._positions[record.topic, record.partition] = record.offset + 1
                for event in events_of(record):
                    self.known.take(event)
        return self.known
