"""The follower: keeps views up to date while the log grows."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import structlog

from schemas.envelope import AnyEvent
from schemas.serialization import UndecodableError, decode_all
from schemas.topics import TOPICS
from streams.storage.errors import LogUnavailableError
from streams.storage.log import Log
from streams.storage.records import Record
from streams.views.view import View

FETCH = 500
"""Records in one read: enough to make a read cheap, few enough to keep memory small."""

RECONNECT_S = 1.0
logger = structlog.get_logger(__name__)


class Follower:
    """Reads the topics of some views, each from its beginning, and hands every event to the views.

    A record that cannot be read changes no view. It is counted and logged; the processor of its
    topic makes it a dead letter. A follower belongs to one thread.

    Args:
        views: in the order in which each event is handed to them.

    Attributes:
        unreadable: by topic, how many records could not be read.
    """

    def __init__(self, views: Sequence[View]) -> None:
        self.unreadable: Counter[str] = Counter()
        self._views: dict[str, list[View]] = {}
        for view in views:
            for topic in view.topics:
                self._views.setdefault(topic.name, []).append(view)
        self._positions: dict[tuple[str, int], int] = {}

    def catch_up(self, log: Log, wait_s: float = 0.0) -> None:
        """Take in everything that is on the log now.

        Args:
            wait_s: where there is nothing new, how long to wait for the next record.

        Raises:
            LogUnavailableError: the log cannot be read now. What was taken in stays, and the next
                call goes on from there.
        """
        if not self._positions:
            self._positions = {
                (topic, partition): begin
                for topic in self._views
                for partition, begin in log.beginnings(topic).items()
            }
        while records := log.fetch(self._positions, FETCH, wait_s):
            wait_s = 0.0
            for record in records:
                for event in self._events(record):
                    for view in self._views[record.topic]:
                        view.apply(event)
                # Only now: after an error above, the record is taken in again.
                self._positions[record.topic, record.partition] = record.offset + 1

    def follow(self, open_log: Callable[[], Log], stop: threading.Event, poll_s: float) -> None:
        """Keep the views up to date until `stop` is set. While the log cannot be read, the views
        stay as they are.

        Args:
            open_log: opens a connection of this thread's own; called again after an outage.
            poll_s: how long one read waits for new records, and so how long `stop` may take.
        """
        while not stop.is_set():
            try:
                with open_log() as log:
                    while not stop.is_set():
                        self.catch_up(log, poll_s)
            except LogUnavailableError as error:
                logger.warning("the log is away; views stay as they are", error=str(error))
                stop.wait(RECONNECT_S)

    def _events(self, record: Record) -> Iterable[AnyEvent]:
        if record.value is None:
            return ()  # the mark of a compacted topic that a key is gone
        try:
            return decode_all(TOPICS[record.topic].event, record.value)
        except UndecodableError as error:
            self.unreadable[record.topic] += 1
            logger.error("record skipped", record=record.position, error=str(error))
            return ()


def read_views(log: Log, *views: View) -> Counter[str]:
    """Fold all events that are on the log now into views. Return how many records of each topic
    could not be read.
    """
    follower = Follower(views)
    follower.catch_up(log)
    return follower.unreadable
