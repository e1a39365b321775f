"""The gateway's follower: keeps routes, API keys and their use up to date."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar

import structlog

from infra.gateway.http.limits import Limits
from infra.gateway.routes.table import RoutingTable
from infra.gateway.state.conversations import AGENT, Conversations
from infra.gateway.state.lightning import LightningState
from infra.runtime.threads import vital_thread
from schemas.envelope import AnyEvent
from schemas.keys import UsageEvent
from schemas.lightning import LightningEvent
from schemas.routes import RouteEvent
from schemas.topics import LIGHTNING, ROUTES, USAGE, Topic
from streams.storage.errors import LogUnavailableError
from streams.storage.log import Log
from streams.views.follower import Follower, read_views
from streams.views.keys import Keys
from streams.views.rollouts import Rollouts
from streams.views.routes import Routes

POLL_S = 0.25
logger = structlog.get_logger(__name__)


class GatewayFollower:
    """Keeps what the gateway serves up to date with the log, in a thread of its own.

    Args:
        open_log: opens a connection to the log; each thread has its own.
    """

    def __init__(
        self,
        table: RoutingTable,
        keys: Keys,
        limits: Limits,
        conversations: Conversations,
        lightning: LightningState,
        open_log: Callable[[], Log],
    ) -> None:
        self._table = table
        self._conversations = conversations
        self._lightning = lightning
        self._open_log = open_log
        self._follower = Follower([_ServedRoutes(table), keys, _CountedUsage(limits)])
        self._restored = False
        self._stop = threading.Event()
        self._thread = vital_thread("follower", self._run)

    @property
    def unreadable(self) -> Counter[str]:
        """By topic, how many records could not be read."""
        return self._follower.unreadable

    def start(self) -> None:
        """Read the log to its end, so that the first request is served by the latest routes. Then
        follow.
        """
        try:
            with self._open_log() as log:
                self._restore(log)
        except LogUnavailableError as error:
            logger.warning("cannot read the routes yet; nothing is served", error=str(error))
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        self._follower.follow(self._open_restored_log, self._stop, POLL_S)

    def _open_restored_log(self) -> Log:
        """Return a connection to the log. If `start` could not read the log, restore the state
        first.
        """
        log = self._open_log()
        if not self._restored:
            try:
                self._restore(log)
            except BaseException:
                log.close()
                raise
        return log

    def _restore(self, log: Log) -> None:
        """Restore the routes, and then the open rollouts: a pin names a version of a route."""
        self._follower.catch_up(log)
        # Read once: from now on this process knows the rollouts that it serves.
        rollouts, calls = Rollouts(), _LightningCalls()
        unreadable = read_views(log, rollouts, calls)
        for key, rollout in rollouts.open.items():
            began = rollout.began
            self._table.restore(
                key,
                rollout.checkpoints,
                began.payload.group,
                rollout.split,
                rollout.split_chosen,
                rollout.assigned,
            )
            # Conversations have no agent that ends them, so this process must do it.
            if began.payload.agent == AGENT:
                self._conversations.restore(began.tenant, began.rollout_id)
        self._lightning.restore(calls.events)
        self._follower.unreadable.update(unreadable)
        self._restored = True


class _ServedRoutes:
    """The routes, each taken into service when it changes."""

    topics: ClassVar[Sequence[Topic]] = (ROUTES,)

    def __init__(self, table: RoutingTable) -> None:
        self._table = table
        self._routes = Routes()

    def apply(self, event: AnyEvent) -> None:
        self._routes.apply(event)
        if isinstance(event, RouteEvent):
            self._table.apply(self._routes.current[event.payload.name])


class _CountedUsage:
    """What keys have used, as every gateway process counts it."""

    topics: ClassVar[Sequence[Topic]] = (USAGE,)

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def apply(self, event: AnyEvent) -> None:
        if isinstance(event, UsageEvent):
            self._limits.apply(event.payload)


class _LightningCalls:
    """What was asked through Agent Lightning's API, in order."""

    topics: ClassVar[Sequence[Topic]] = (LIGHTNING,)

    def __init__(self) -> None:
        self.events: list[LightningEvent] = []

    def apply(self, event: AnyEvent) -> None:
        if isinstance(event, LightningEvent):
            self.events.append(event)
