"""How many events a second one core takes through the log and its processors."""

import gc
import time
from pathlib import Path
from typing import Any

from infra.config.settings import Settings
from schemas.topics import SPANS, TOPICS
from streams.processors.router import ExampleRouter
from streams.processors.trajectories import TrajectoryJoin
from streams.runners.embedded.runner import EmbeddedRunner
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.records import NewRecord, Outgoing, share_records
from tests import events

EVENTS = 28_000
SPANS_A_ROLLOUT = 10
SPANS_A_RECORD = (1, 10, 30)


def measured(folder: Path) -> dict[str, Any]:
    """Return appends, join and routing in events a second, by how many spans share a record."""
    return {
        f"{spans}_spans_a_record": _measured(
            folder / str(spans), max(SPANS_A_ROLLOUT, spans), spans
        )
        for spans in SPANS_A_RECORD
    }


def _measured(folder: Path, spans: int, spans_a_record: int) -> dict[str, Any]:
    """Measure once; the peer is a loop that only reads the same log."""
    settings = Settings(data_dir=folder)
    count = EVENTS // (spans + 4)
    records = rollouts(count, spans, spans_a_record)
    events_made = count * (spans + 4)
    gc.collect()
    gc.freeze()  # as the workers do
    with EmbeddedLog(folder / "log.db") as log:
        begun = time.perf_counter()
        for start in range(0, len(records), 1000):
            log.append(records[start : start + 1000])
        appended = time.perf_counter() - begun
        bare = _read_all(log)
        joined = _drained(EmbeddedRunner(log, TrajectoryJoin(), "benchmark"))
        router = ExampleRouter(settings.adapter, settings.join.late_reward_window)
        routed = _drained(EmbeddedRunner(log, router, "benchmark"))
    return {
        "records": len(records),
        "events": events_made,
        "append_events_per_s": round(events_made / appended),
        "bare_read_events_per_s": round(events_made / bare),
        "join_events_per_s": round(events_made / joined),
        "route_events_per_s": round(events_made / routed),
        "join_and_route_events_per_s": round(events_made / (joined + routed)),
    }


def rollouts(count: int, spans: int, spans_a_record: int) -> list[NewRecord]:
    """Return the records of rewarded rollouts with one decision and `spans` model calls each, one
    after another.
    """
    made = []
    for number in range(count):
        name = f"r{number}"
        calls = [
            events.model_span(name, "geneticist", "it does " * 20, f"{number:012x}{index:04x}")
            for index in range(spans)
        ]
        outgoing = [Outgoing.of(SPANS, name, call) for call in calls]
        made.append(events.new_record(events.started(name)))
        for start in range(0, spans, spans_a_record):
            made += share_records(outgoing[start : start + spans_a_record])
        after = (
            events.decision(name, ["a", "b", "c"], 0),
            events.succeeded(name),
            events.reward(name, 0.5),
        )
        made += [events.new_record(event) for event in after]
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
