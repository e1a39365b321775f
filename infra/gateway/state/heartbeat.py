"""The heartbeat of the event loop: for how long one piece of work kept all others waiting."""

import asyncio
import time

BEAT_S = 0.002
WINDOW_S = 60.0
LONG_S = 0.005
"""Nothing in the loop may take longer."""


class Heartbeat:
    """Measures how late the event loop is.

    It wakes up every `BEAT_S` and compares the clock. So a delay is measured too short by at most
    `BEAT_S`, and what the operating system gave to other processes counts as well.

    Attributes:
        long: how many delays were longer than `LONG_S`.
    """

    def __init__(self) -> None:
        self.long = 0
        self._longest = [0.0, 0.0]
        self._began = time.monotonic()

    @property
    def longest_s(self) -> float:
        """The longest delay of the last one to two `WINDOW_S`."""
        return max(self._longest)

    async def run(self) -> None:
        """Measure. Never returns."""
        due = time.monotonic() + BEAT_S
        while True:
            await asyncio.sleep(BEAT_S)
            now = time.monotonic()
            self._note(now - due, now)
            due = now + BEAT_S

    def _note(self, delay: float, now: float) -> None:
        if now - self._began > WINDOW_S:
            self._longest = [self._longest[1], 0.0]
            self._began = now
        self._longest[1] = max(self._longest[1], delay)
        self.long += delay > LONG_S
