"""How many events a second one core takes through the log and its processors."""

import time
from pathlib import Path
from typing import Any

from infra.config import Settings
from schemas.envelope import AnyEvent
from schemas.topics import TOPICS
from streams.embedded.log import EmbeddedLog
from streams.embedded.runner import EmbeddedRunner
from streams.records import NewRecord
from streams.routing import LessonRouter
from streams.trajectories import TrajectoryJoin
from tests import events

ROLLOUTS = 2000
SPANS_A_ROLLOUT = 10


def measured(folder: Path) -> dict[str, Any]:
    """Return appends, join and routing in events a second; the peer is a loop that only reads the same log."""
    settings = Settings(data_dir=folder)
    records = _records()
    with EmbeddedLog(folder / "log.db") as log:
        begun = time.perf_counter()
        for start in range(0, len(records), 1000):
            log.append(records[start : start + 1000])
        appended = time.perf_counter() - begun
        bare = _read_all(log)
        joined = _drained(EmbeddedRunner(log, TrajectoryJoin(), "benchmark"))
        trajectories = sum(log.ends("everloop.trajectories").values())
        routed = _drained(
            EmbeddedRunner(log, LessonRouter(settings.adapter, settings.join.late_reward_window), "benchmark")
        )
    return {
        "events": len(records),
        "append_events_per_s": round(len(records) / appended),
        "bare_read_events_per_s": round(len(records) / bare),
        "join_events_per_s": round(len(records) / joined),
        "route_trajectories_per_s": round(trajectories / routed),
        "join_and_route_events_per_s": round(len(records) / (joined + routed)),
    }


def _records() -> list[NewRecord]:
    made = []
    for number in range(ROLLOUTS):
        name = f"r{number}"
        spans = [
            events.model_span(name, "geneticist", "it does " * 20, f"{number:012x}{index:04x}")
            for index in range(SPANS_A_ROLLOUT)
        ]
        happened: list[AnyEvent] = [
            events.started(name),
            *spans,
            events.decision(name, ["a", "b", "c"], 0),
            events.succeeded(name),
        ]
        made += [events.new_record(event) for event in (*happened, events.reward(name, 0.5))]
    return made


def _read_all(log: EmbeddedLog) -> float:
    begun = time.perf_counter()
    for topic in TOPICS.values():
        positions = {(topic.name, partition): 0 for partition in range(topic.partitions)}
        while records := log.fetch(positions, 500):
            positions |= {(record.topic, record.partition): record.offset + 1 for record in records}
    return time.perf_counter() - begun


def _drained(runner: EmbeddedRunner[Any]) -> float:
    begun = time.perf_counter()
    while runner.run_once():
        pass
    return time.perf_counter() - begun
