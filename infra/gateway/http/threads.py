"""Work on large requests, done in threads: the event loop answers other calls meanwhile."""

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LARGE_BYTES = 64 * 1024
"""From this size on, work may take longer than a millisecond. Below it a thread costs more."""

SWITCH_S = 0.0005
"""How long a thread may keep the interpreter while the event loop waits for it; Python's own 5 ms
would be a delay for each step of the loop.
"""

_POOL = ThreadPoolExecutor(2, thread_name_prefix="large")


def share_interpreter() -> None:
    """Let the event loop have the interpreter soon while a thread works."""
    sys.setswitchinterval(SWITCH_S)


async def run_aside(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do work in a thread if it is about much, else at once.

    Args:
        size: bytes that the work is about.
    """
    if size < LARGE_BYTES:
        return work(*args, **kwargs)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_POOL, lambda: work(*args, **kwargs))
