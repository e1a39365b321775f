"""The heartbeat says for how long one piece of work held the event loop."""

import asyncio
import time

from infra.gateway.state import heartbeat
from infra.gateway.state.heartbeat import Heartbeat


async def _beats(held_s: float) -> Heartbeat:
    found = Heartbeat()
    running = asyncio.create_task(found.run())
    await asyncio.sleep(0.01)
    time.sleep(held_s)
    await asyncio.sleep(0.01)
    running.cancel()
    return found


def test_work_that_holds_the_loop_is_measured() -> None:
    found = asyncio.run(_beats(0.1))
    assert found.longest_s >= 0.1 - heartbeat.BEAT_S
    assert found.long >= 1


def test_a_delay_is_forgotten_after_two_windows() -> None:
    found = Heartbeat()
    begin = found._began
    found._note(0.5, begin)
    found._note(0.1, begin + heartbeat.WINDOW_S + 1)
    assert found.longest_s == 0.5
    found._note(0.2, begin + 2 * heartbeat.WINDOW_S + 3)
    assert found.longest_s == 0.2
