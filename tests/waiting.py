"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_S = 240.0
T = TypeVar("T")


def eventually(value: Callable[[], T | None], what: str) -> T:
    """Return the first true value; fail when none comes."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := value()):
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.02)
    return found
