"""Threads that a process cannot do without."""

import os
import signal
import threading
from collections.abc import Callable

import structlog

logger = structlog.get_logger(__name__)


def vital_thread(name: str, run: Callable[[], None]) -> threading.Thread:
    """Return a thread that stops the process if `run` raises, so that its supervisor starts it
    again.

    Without this, a server would go on answering while its work in the background stands still.

    Without this a server would go on answering while what it must do behind its answers is not
    done.
    """

    def run_or_stop() -> None:
        try:
            run()
        except Exception:
            logger.exception(
                "a vital thread failed, stopping so that the supervisor starts the process again"
            )
            # SIGTERM, not exit: the server finishes its requests and closes the log.
            os.kill(os.getpid(), signal.SIGTERM)

    return threading.Thread(target=run_or_stop, name=name)
