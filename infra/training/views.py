"""What the log says of models that are trained: orders, runs, checkpoints and routes."""

from collections.abc import Collection, Sequence
from typing import ClassVar

from schemas.checkpoints import Checkpoint, CheckpointState
from schemas.commands import CommandEvent
from schemas.endpoints import Endpoint
from schemas.envelope import AnyEvent
from schemas.topics import COMMANDS, Topic
from schemas.trainings import ENDED, TrainingState
from streams.storage.log import Log
from streams.views.checkpoints import Checkpoints
from streams.views.follower import Follower
from streams.views.routes import Routes
from streams.views.trainings import Trainings

REFUSED = frozenset({CheckpointState.REJECTED, CheckpointState.ROLLED_BACK})


class WaitingOrders:
    """Orders to some targets that nobody has taken yet, in the order in which they were given.

    Args:
        targets: logical names; orders to others are for somebody else.

    Attributes:
        waiting: orders to train by a manifest, and to cancel.
    """

    topics: ClassVar[Sequence[Topic]] = (COMMANDS,)

    def __init__(self, targets: Collection[str]) -> None:
        self.waiting: list[CommandEvent] = []
        self._targets = targets

    def apply(self, event: AnyEvent) -> None:
        """Take in an order."""
        if not isinstance(event, CommandEvent) or event.payload.target not in self._targets:
            return
        order = event.payload
        if order.action == "cancel" or (order.action == "train" and order.manifest is not None):
            self.waiting.append(event)

    def take(self) -> list[CommandEvent]:
        """Return the waiting orders; they wait no longer."""
        taken, self.waiting = self.waiting, []
        return taken


class TrainingViews:
    """The views that a trainer works by.

    Args:
        targets: logical names that are trained here.
    """

    def __init__(self, targets: Collection[str]) -> None:
        self.trainings = Trainings()
        self.checkpoints = Checkpoints()
        self.routes = Routes()
        self.orders = WaitingOrders(targets)
        self._follower = Follower([self.trainings, self.checkpoints, self.routes, self.orders])

    def catch_up(self, log: Log) -> None:
        """Take in what is new on the log."""
        self._follower.catch_up(log)

    def failed_configs(self, target: str, parent: str | None) -> set[str]:
        """Return the hashes of the configurations whose last run on these weights came to nothing.

        A run comes to nothing when it fails, or when its version is rejected or rolled back.
        """
        came_to: dict[str, bool] = {}
        for training in self.trainings.runs.values():
            if (
                training.target != target
                or training.parent != parent
                or training.state not in ENDED
            ):
                continue
            made = self.checkpoints.all.get((target, training.version or ""))
            # The dictionary keeps the last run of each configuration: a method that failed once may
            # work now.
            came_to[training.config_sha256] = training.state is TrainingState.FAILED or (
                made is not None and made.state in REFUSED
            )
        return {config for config, failed in came_to.items() if failed}

    def serving(self, name: str) -> Endpoint | None:
        """Return where most calls of a name go now."""
        route = self.routes.current.get(name)
        if route is None:
            return None
        return max(route.targets, key=lambda target: target.weight).endpoint

    def promoted(self, name: str) -> Checkpoint | None:
        """Return the promoted version of a name; None where none is."""
        return self.checkpoints.promoted(name)
