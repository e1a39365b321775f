"""Partitions that Faust stops delivering: how they are found, and how they go on.

After a rebalance Faust 0.15.3 may go on with records that it fetched before. These move its read
position too far. Records that come again then look old, and Faust drops them unacknowledged. So the
partition's offset is not committed any more. Nothing is lost, but nothing goes on until the process
starts again. Going back to the committed offset mends it. Records that were processed in between
come twice, and count once, because the states know them.
"""

import os
import signal
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any

import structlog

CHECK_EVERY_S = 2.0
STALLED_AFTER_S = 10.0  # a healthy partition commits every second
MOST_ATTEMPTS = 5
logger = structlog.get_logger(__name__)


@dataclass
class _Watched:
    """A partition with records to read, and since when its committed offset has not moved."""

    committed: int
    since: float
    attempts: int = 0


class StalledPartitions:
    """Watches the partitions that a Faust app reads.

    Args:
        topics: topics that the app reads.
        idle: says whether no record is being processed. While one is, a partition may wait.
        unread: says whether a partition has a record at or after an offset. The end does not say
            it, because transactions' markers take offsets too.
        clock: seconds that never go back.
        end_process: asks this process to end, so that its supervisor starts it again.
    """

    def __init__(
        self,
        app: Any,
        topics: Collection[str],
        idle: Callable[[], bool],
        unread: Callable[[Any, int], Awaitable[bool]],
        clock: Callable[[], float] = time.monotonic,
        end_process: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM),
    ) -> None:
        self._app = app
        self._topics = topics
        self._idle = idle
        self._unread = unread
        self._clock = clock
        self._end_process = end_process
        self._watched: dict[Any, _Watched] = {}

    async def mend(self) -> None:
        """Go back to each committed offset that has not moved for `STALLED_AFTER_S`.

        After `MOST_ATTEMPTS` without success it ends the process.
        """
        active = {
            place for place in self._app.assignor.assigned_actives() if place.topic in self._topics
        }
        # While partitions move, a standing offset means nothing.
        if self._app.rebalancing or not active:
            self._watched = {}
            return
        consumer = self._app.consumer
        ends = await consumer.highwaters(*active)
        self._watched = {place: known for place, known in self._watched.items() if place in active}
        for place in active:
            committed = consumer._committed_offset.get(place) or 0
            known = self._watched.get(place)
            if committed >= ends[place]:
                # It moves again, so the attempts are forgotten as well.
                self._watched.pop(place, None)
            elif known is None or known.committed != committed:
                self._watched[place] = _Watched(committed, self._clock())
            elif self._clock() - known.since > STALLED_AFTER_S and self._idle():
                if await self._unread(place, committed):
                    await self._take_up(place, known, ends[place])
                else:
                    # Only markers of transactions lie there. Nothing is stalled.
                    known.since = self._clock()

    async def _take_up(self, place: Any, known: _Watched, end: int) -> None:
        known.attempts += 1
        known.since = self._clock()
        position = {
            "topic": place.topic,
            "partition": place.partition,
            "committed": known.committed,
            "end": end,
        }
        if known.attempts > MOST_ATTEMPTS:
            logger.error(
                "partition stalled for good, stopping so that the process is started again",
                **position,
            )
            self._end_process()
            return
        logger.warning("partition stalled, going back to its committed offset", **position)
        await self._app.consumer.seek(place, known.committed)
