"""A partition whose committed offset no longer moves is taken up again from there; a slow or busy
one is left alone.
"""

from collections import namedtuple
from typing import Any

import pytest

from streams.runners.kafka.stalls import MOST_ATTEMPTS, STALLED_AFTER_S, StalledPartitions

Place = namedtuple("Place", ["topic", "partition"])
STUCK, DONE, FOREIGN = Place("t", 0), Place("t", 1), Place("other", 0)


class Faust:
    """What `StalledPartitions` sees of a Faust app: assignor, consumer, and whether it
    rebalances.
    """

    def __init__(self) -> None:
        self.rebalancing = False
        self.assignor = self.consumer = self
        self._committed_offset = {STUCK: 15, DONE: 40, FOREIGN: 1}
        self.sought: list[tuple[Any, int]] = []

    def assigned_actives(self) -> set[Place]:
        return {STUCK, DONE, FOREIGN}

    async def highwaters(self, *places: Place) -> dict[Place, int]:
        return dict.fromkeys(places, 40)

    async def seek(self, place: Place, offset: int) -> None:
        self.sought.append((place, offset))

    def commit(self, offset: int) -> None:
        self._committed_offset[STUCK] = offset


class Clock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def unread(place: Any, offset: int) -> bool:
    return True


async def only_marks(place: Any, offset: int) -> bool:
    return False


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_a_stalled_partition_is_taken_up_from_its_committed_offset(clock: Clock) -> None:
    app = Faust()
    watch = StalledPartitions(app, {"t"}, lambda: True, unread, clock)
    await watch.mend()
    clock.now = STALLED_AFTER_S - 1
    await watch.mend()
    assert app.sought == []
    clock.now = STALLED_AFTER_S + 1
    await watch.mend()
    assert app.sought == [(STUCK, 15)]


async def test_a_partition_with_nothing_but_marks_at_its_end_is_left_alone(clock: Clock) -> None:
    app = Faust()
    watch = StalledPartitions(app, {"t"}, lambda: True, only_marks, clock)
    for _ in range(10):
        await watch.mend()
        clock.now += STALLED_AFTER_S + 1
    assert app.sought == []


async def test_a_partition_that_moves_however_slowly_is_left_alone(clock: Clock) -> None:
    app = Faust()
    watch = StalledPartitions(app, {"t"}, lambda: True, unread, clock)
    for offset in range(15, 40):
        app.commit(offset)
        await watch.mend()
        clock.now += STALLED_AFTER_S - 1
    assert app.sought == []


async def test_nothing_is_done_while_a_record_is_processed_or_the_group_rebalances(
    clock: Clock,
) -> None:
    app, busy = Faust(), Faust()
    watch, patient = (
        StalledPartitions(app, {"t"}, lambda: True, unread, clock),
        StalledPartitions(busy, {"t"}, lambda: False, unread, clock),
    )
    for rebalancing in (False, True, False):
        app.rebalancing = rebalancing
        await watch.mend()
        await patient.mend()
        clock.now += STALLED_AFTER_S - 1
    clock.now += 100
    await patient.mend()
    assert app.sought == busy.sought == []


async def test_a_process_that_cannot_mend_it_ends(clock: Clock) -> None:
    ended: list[bool] = []
    app = Faust()
    watch = StalledPartitions(app, {"t"}, lambda: True, unread, clock, lambda: ended.append(True))
    for _ in range(MOST_ATTEMPTS + 2):
        await watch.mend()
        clock.now += STALLED_AFTER_S + 1
    assert len(app.sought) == MOST_ATTEMPTS
    assert ended == [True]
