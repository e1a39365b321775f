"""A worker process on the embedded log: a thread for each group, and one for retention."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from schemas.clock import now
from streams.processing.processor import Processor
from streams.runners.config import DEFAULT_LEASE_S
from streams.runners.embedded.runner import EmbeddedRunner
from streams.storage.embedded.log import EmbeddedLog

RETENTION_EVERY_S = 60.0
logger = structlog.get_logger(__name__)


class Worker:
    """Runs processors until it is stopped.

    Each group has its own thread, so that a slow one never delays another.

    Args:
        member: name of this process among the workers of its groups.
        batch_linger_s: seconds that a group waits after a batch for the next one to fill. Longer
            means fewer commits and more latency.
    """

    def __init__(
        self,
        path: Path,
        processors: Sequence[Processor[Any]],
        member: str,
        *,
        lease_s: float = DEFAULT_LEASE_S,
        batch_linger_s: float = 0.02,
    ) -> None:
        self._path = path
        self._member = member
        self._lease_s = lease_s
        self._linger_s = batch_linger_s
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(
                target=self._run_guarded, args=(self._run_group, processor), name=processor.name
            )
            for processor in processors
        ]
        self._threads.append(
            threading.Thread(
                target=self._run_guarded, args=(self._enforce_retention,), name="retention"
            )
        )

    def run(self) -> None:
        """Process until `stop` is called. A failure in one group stops all, and is raised here."""
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Finish the batches in hand, give up the leases and return from `run`."""
        self._stop.set()

    def _run_guarded(self, target: Any, *arguments: Any) -> None:
        try:
            target(*arguments)
        except BaseException as error:  # noqa: BLE001 - carried to the main thread, which raises it
            logger.error(
                "worker thread failed", thread=threading.current_thread().name, error=repr(error)
            )
            # The first failure is kept; the others often follow from it.
            self._failure = self._failure or error
            self._stop.set()

    def _run_group(self, processor: Processor[Any]) -> None:
        # A connection belongs to one thread, so each thread opens its own.
        with EmbeddedLog(self._path) as log:
            runner = EmbeddedRunner(log, processor, self._member, lease_s=self._lease_s)
            while not self._stop.is_set():
                if runner.run_once():
                    # Let the next batch fill: a transaction costs nearly the same for one record
                    # and for many.
                    self._stop.wait(self._linger_s)
                else:
                    log.wait_for_change(timeout_s=0.25)
            runner.close()

    def _enforce_retention(self) -> None:
        with EmbeddedLog(self._path) as log:
            while not self._stop.wait(RETENTION_EVERY_S):
                if deleted := log.enforce_retention(now()):
                    logger.info("old records deleted", records=deleted)
