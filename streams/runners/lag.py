"""Lag: how many records the processors of an installation have still to read."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from streams.processing.processor import Processor
from streams.storage.log import Log

# The lag must stay 0 this long: outputs may reach the log just after their source was read.
SETTLED_FOR_S = 0.3
STAGES = 8
"""At least as many as processors pass a span on: join, judge, join again, router, batcher or
learner, promotion, and what follows.
"""


class NotDrainedError(Exception):
    """Processors did not reach the end of the log in time."""


def lag(log: Log, processor: Processor[Any]) -> dict[tuple[str, int], int]:
    """Return how many records a processor has still to read, by topic and partition."""
    topics = [topic.name for topic in processor.topics]
    partitions = range(processor.topics[0].partitions)
    return log.unread(log.committed(processor.group, topics, partitions))


def behind(log: Log, processor: Processor[Any]) -> int:
    """Return how many records a processor has still to read, in total."""
    return sum(lag(log, processor).values())


def lag_metrics(log: Log, processors: Sequence[Processor[Any]]) -> bytes:
    """Return the lag of every group and partition in Prometheus's format."""
    gauge = Gauge(
        "everloop_consumer_lag",
        "Records that a consumer group has still to read.",
        ["group", "topic", "partition"],
        registry=(registry := CollectorRegistry()),
    )
    for processor in processors:
        for (topic, partition), records in lag(log, processor).items():
            gauge.labels(processor.group, topic, partition).set(records)
    return generate_latest(registry)


def wait_until_drained(log: Log, processors: Sequence[Processor[Any]], timeout_s: float) -> None:
    """Return when every processor has read everything, and nothing new came for `SETTLED_FOR_S`.

    Raises:
        NotDrainedError: it took longer than `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    settled_since: float | None = None
    while settled_since is None or time.monotonic() - settled_since < SETTLED_FOR_S:
        waiting = {processor.group: behind(log, processor) for processor in processors}
        if any(waiting.values()):
            settled_since = None
        elif settled_since is None:
            settled_since = time.monotonic()
        if time.monotonic() > deadline:
            raise NotDrainedError(f"records still to be read after {timeout_s:.0f} s: {waiting}")
        # Each look asks the log, which the processors need, too.
        time.sleep(0.05)


def wait_until_taken(log: Log, processors: Sequence[Processor[Any]], timeout_s: float) -> None:
    """Return when everything on the log now, and everything that follows from it, is processed.

    Records that come meanwhile may still be unread.

    Raises:
        NotDrainedError: it took longer than `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    # A stage writes its outputs before it commits. So they are below the next round's ends.
    for _ in range(STAGES):
        ends = {
            topic.name: log.ends(topic.name)
            for processor in processors
            for topic in processor.topics
        }
        while waiting := [
            processor.group for processor in processors if not _has_taken(log, processor, ends)
        ]:
            if time.monotonic() > deadline:
                raise NotDrainedError(
                    f"not processed after {timeout_s:.0f} s by {', '.join(waiting)}"
                )
            time.sleep(0.05)


def _has_taken(log: Log, processor: Processor[Any], ends: Mapping[str, Mapping[int, int]]) -> bool:
    topics = [topic.name for topic in processor.topics]
    committed = log.committed(processor.group, topics, range(processor.topics[0].partitions))
    before = {
        place: offset
        for place, offset in committed.items()
        if offset < ends[place[0]].get(place[1], 0)
    }
    # On Kafka the last offsets may be markers of transactions, which nobody reads.
    return not any(log.unread(before).values())
