"""A million span events replayed: at what rate, and whether memory grows with the length of the
topic.
"""

import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from schemas.serialization import decode_all
from schemas.spans import Attribute, SpanEvent
from schemas.topics import SPANS
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from tests.benchmarks.streams import rollouts

LENGTHS = (100_000, 1_000_000)
SPANS_A_ROLLOUT = 10
ROLLOUTS_AT_ONCE = 5000


def measured(folder: Path) -> dict[str, Any]:
    """Return events a second and peak memory by length, each measured in a process of its own."""
    results = {}
    for length in LENGTHS:
        with EmbeddedLog(folder / f"{length}.db") as log:
            _fill(log, length)
        command = [sys.executable, "-m", "tests.benchmarks.replay", str(folder / f"{length}.db")]
        done = subprocess.run(command, capture_output=True, check=True)
        results[f"{length}_spans"] = orjson.loads(done.stdout)
        (folder / f"{length}.db").unlink()
    return results


def _fill(log: EmbeddedLog, spans: int) -> None:
    made = rollouts(ROLLOUTS_AT_ONCE, SPANS_A_ROLLOUT, 1)
    calls = [record for record in made if record.topic == SPANS.name]
    for start in range(0, spans, len(calls)):
        log.append(calls[: spans - start])


def _replay(path: Path) -> dict[str, Any]:
    """Decode every span event of a log and count the calls by node, as a replay from the beginning
    does.
    """
    before = _peak_mib()
    calls: Counter[str | None] = Counter()
    begun = time.perf_counter()
    with EmbeddedLog(path) as log:
        for record in read_all(log, SPANS.name):
            calls.update(
                event.payload.text(Attribute.NODE) for event in decode_all(SpanEvent, record.value)
            )
    took = time.perf_counter() - begun
    return {
        "events_per_s": round(calls.total() / took),
        "peak_memory_mib": _peak_mib(),
        "memory_before_mib": before,
    }


def _peak_mib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


if __name__ == "__main__":
    sys.stdout.buffer.write(orjson.dumps(_replay(Path(sys.argv[1]))))
