"""How many events a second join and routing take on Kafka, beside bare pass-through functions in
the same run.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from infra.kafka.local import LocalCluster
from schemas.topics import EXAMPLES, TRAJECTORIES
from streams.processors.adapter import AdapterConfig
from streams.processors.router import ExampleRouter
from streams.processors.trajectories import JoinConfig, TrajectoryJoin
from streams.storage.kafka.cluster import Cluster
from streams.storage.kafka.log import KafkaLog
from streams.storage.records import NewRecord
from tests.benchmarks.streams import rollouts
from tests.kafka import declare_afresh

EVENTS = 60_000
PEERS = ("faust", "aiokafka", "everloop")
SPANS_A_RECORD = (1, 30)
TIMEOUT_S = 60.0


def measured(folder: Path) -> dict[str, Any]:
    """Return records and events a second, wall and for each second of the process's processor time,
    by peer.
    """
    local = LocalCluster(folder / "kafka")
    local.start()
    try:
        return {
            f"{spans}_spans_a_record": {
                peer: _measured(local.bootstrap, peer, spans) for peer in PEERS
            }
            for spans in SPANS_A_RECORD
        }
    finally:
        local.stop()


def _measured(bootstrap: str, peer: str, spans_a_record: int) -> dict[str, float]:
    spans = max(10, spans_a_record)
    count = EVENTS // (spans + 4)
    records = rollouts(count, spans, spans_a_record)
    router = ExampleRouter(AdapterConfig(), JoinConfig().late_reward_window)
    declare_afresh(bootstrap, [TrajectoryJoin(), router])
    with KafkaLog(Cluster(bootstrap)) as log, tempfile.TemporaryDirectory() as folder:
        for start in range(0, len(records), 1000):
            log.append(records[start : start + 1000])
        # The join emits each rollout at its end and at its reward; the router one example for each.
        # What passes on does so once a record.
        topic, expected = (
            (EXAMPLES.name, count) if peer == "everloop" else (TRAJECTORIES.name, len(records))
        )
        command = [sys.executable, "-m", "tests.benchmarks.kafka_peer", peer, bootstrap, folder]
        process = subprocess.Popen(command)
        try:
            wall, cpu, share = _timed(log, topic, expected, psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait()
    return _rates(records, count * (spans + 4), share, wall, cpu)


def _timed(
    log: KafkaLog, topic: str, expected: int, process: psutil.Process
) -> tuple[float, float, float]:
    """Return wall and processor seconds from the first output seen to the last, and the share of
    outputs between.
    """
    deadline = time.monotonic() + TIMEOUT_S
    first: tuple[float, float, int] | None = None
    positions = {(topic, partition): 0 for partition in log.ends(topic)}
    written = 0
    while (written := written + _read_on(log, positions)) < expected:
        if first is None and written:
            first = (time.monotonic(), _processor_s(process), written)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{written} of {expected} records in {topic} after {TIMEOUT_S} s")
    if first is None:
        raise TimeoutError("all was done before anything was seen: measure more events")
    begun, used, seen = first
    return time.monotonic() - begun, _processor_s(process) - used, (expected - seen) / expected


def _read_on(log: KafkaLog, positions: dict[tuple[str, int], int]) -> int:
    """Read what is new and return how much that was. Offsets do not say it: transactions' marks
    take some too.
    """
    records = log.fetch(positions, 500)
    positions |= {(record.topic, record.partition): record.offset + 1 for record in records}
    return len(records)


def _processor_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _rates(
    records: list[NewRecord], events: int, share: float, wall: float, cpu: float
) -> dict[str, float]:
    return {
        "records": len(records),
        "events": events,
        "records_per_s": round(len(records) * share / wall),
        "events_per_s": round(events * share / wall),
        "records_per_core_s": round(len(records) * share / cpu),
        "events_per_core_s": round(events * share / cpu),
    }
