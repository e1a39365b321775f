"""Waiting for processors: for all there is, or for what there was."""

import threading
from datetime import timedelta
from pathlib import Path

import pytest

from schemas.envelope import AnyEvent
from schemas.topics import EXAMPLES
from streams.processors.adapter import AdapterConfig
from streams.processors.router import ExampleRouter
from streams.processors.trajectories import TrajectoryJoin
from streams.runners.embedded.runner import EmbeddedRunner
from streams.runners.lag import NotDrainedError, wait_until_drained, wait_until_taken
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from streams.storage.records import NewRecord
from tests import events

JOIN = TrajectoryJoin()
ROUTER = ExampleRouter(AdapterConfig(rl={"writer": frozenset({"writer"})}), timedelta(days=1))


def rollout(number: int) -> list[NewRecord]:
    """Return a rollout that comes to one example."""
    name = f"r{number}"
    happened: list[AnyEvent] = [
        events.started(name),
        events.model_span(name, "writer", "x"),
        events.reward(name, 0.5),
        events.succeeded(name),
    ]
    return [events.new_record(event, name) for event in happened]


def test_what_follows_is_processed_though_more_keeps_coming(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    log.append(rollout(0))
    stop = threading.Event()

    def busy() -> None:
        with EmbeddedLog(tmp_path / "log.db") as own:
            runners = [EmbeddedRunner(own, processor, "test") for processor in (ROUTER, JOIN)]
            number = 0
            while not stop.is_set():
                number += 1
                own.append(rollout(number))  # the join is never at the end when it is looked at
                for runner in runners:
                    runner.run_once()
            for runner in runners:
                runner.close()

    worker = threading.Thread(target=busy)
    worker.start()
    try:
        wait_until_taken(log, [JOIN, ROUTER], 60)
        examples = {record.value for record in read_all(log, EXAMPLES.name)}
    finally:
        stop.set()
        worker.join()
    assert any(b'"r0"' in (value or b"") for value in examples)


def test_what_nobody_processes_is_said(log: EmbeddedLog) -> None:
    log.append(rollout(0))
    for wait in (wait_until_taken, wait_until_drained):
        with pytest.raises(NotDrainedError, match="after 0 s"):
            wait(log, [JOIN], 0.1)
