"""Following: what the gateway serves, whom it knows and what was used, kept at the end of their
topics.
"""

import threading
from collections.abc import Callable

import structlog

from infra.gateway.apis.lightning.state import LightningState
from infra.gateway.calls.conversations import AGENT, Conversations
from infra.gateway.http.access import KeyRing
from infra.gateway.http.limits import Limits
from infra.gateway.routes.table import RoutingTable
from infra.runtime.threads import vital_thread
from schemas.envelope import AnyEvent, rollout_key
from schemas.keys import KeyEvent, UsageEvent
from schemas.rollouts import TERMINAL, RolloutEvent, RolloutState
from schemas.routes import RouteEvent
from schemas.topics import KEYS, LIGHTNING, ROLLOUTS, ROUTES, USAGE, Topic
from streams.storage.errors import LogUnavailableError
from streams.storage.log import Log, read_all
from streams.views.events import events_of

FOLLOWED: tuple[Topic, ...] = (ROUTES, KEYS, USAGE)
logger = structlog.get_logger(__name__)


class Follower:
    """Keeps routes, keys and usage at the end of their topics, from a thread of its own."""

    def __init__(
        self,
        table: RoutingTable,
        keys: KeyRing,
        limits: Limits,
        conversations: Conversations,
        lightning: LightningState,
        open_log: Callable[[], Log],
        poll_s: float = 0.25,
    ) -> None:
        self._table = table
        self._keys = keys
        self._limits = limits
        self._conversations = conversations
        self._lightning = lightning
        self._open_log = open_log
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._positions = {
            (topic.name, partition): 0
            for topic in FOLLOWED
            for partition in range(topic.partitions)
        }
        self._begun = False
        self._thread = vital_thread("follower", self._run)

    def start(self) -> None:
        """Catch up, so that the first request already sees what was served last; then follow."""
        try:
            with self._open_log() as log:
                self._begin(log)
        except LogUnavailableError as error:
            logger.warning("cannot read the routes yet; nothing is served", error=str(error))
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        log: Log | None = None
        while not self._stop.is_set():
            try:
                log = log or self._open_log()
                if not self._begun:
                    self._begin(log)
                self._catch_up(log, self._poll_s)
            except LogUnavailableError as error:
                logger.warning("cannot follow routes; what is served stays", error=str(error))
                if log is not None:
                    log.close()
                log = None
                self._stop.wait(1.0)
        if log is not None:
            log.close()

    def _begin(self, log: Log) -> None:
        """Take in what was served, then pin what began under it: in this order, since pins name
        versions.
        """
        self._catch_up(log)
        self._restore_rollouts(log)
        self._lightning.restore(
            event for record in read_all(log, LIGHTNING.name) for event in events_of(record)
        )
        self._begun = True

    def _catch_up(self, log: Log, wait_s: float = 0.0) -> None:
        while records := log.fetch(self._positions, 500, wait_s):
            wait_s = 0.0
            for record in records:
                for event in events_of(record):
                    self._take(event)
                self._positions[record.topic, record.partition] = record.offset + 1

    def _take(self, event: AnyEvent) -> None:
        match event:
            case RouteEvent():
                self._table.apply(event.payload)
            case KeyEvent():
                self._keys.apply(event.payload)
            case UsageEvent():
                self._limits.apply(event.payload)

    def _restore_rollouts(self, log: Log) -> None:
        """Pin rollouts that are still open to what they began with."""
        opened: dict[str, RolloutEvent] = {}
        versions: dict[str, dict[str, str]] = {}
        for record in read_all(log, ROLLOUTS.name):
            for change in events_of(record):
                assert isinstance(change, RolloutEvent)  # noqa: S101 - the topic holds nothing else
                key = rollout_key(change.tenant, change.rollout_id)
                if change.payload.state in TERMINAL:
                    opened.pop(key, None)
                    versions.pop(key, None)
                else:
                    # Only who announces a rollout says that it was created; that counts, also
                    # after a call of it has said that it started.
                    if key not in opened or change.payload.state is RolloutState.CREATED:
                        opened[key] = change
                    versions.setdefault(key, {}).update(change.payload.checkpoints)
        for key, began in opened.items():
            announced = began.payload.state is RolloutState.CREATED
            self._table.restore(key, versions[key], began.payload.group, announced)
            if began.payload.agent == AGENT:
                self._conversations.restore(began.tenant, began.rollout_id)
