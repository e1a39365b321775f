"""The same loop on Apache Kafka: workers are killed, and nothing is lost or learned twice."""

import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from infra.config.settings import Settings
from infra.installation.processors import all_processors, learning_processors
from schemas.envelope import AnyEvent
from schemas.examples import ExampleEvent
from schemas.serialization import decode
from schemas.topics import DEAD_LETTERS, EXAMPLES, TRAJECTORIES
from schemas.trajectories import TrajectoryEvent
from streams.processors.learner import Learning
from streams.runners.embedded.runner import EmbeddedRunner
from streams.runners.lag import wait_until_drained
from streams.runners.replay import live_state
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.kafka.cluster import Cluster
from streams.storage.kafka.log import KafkaLog
from streams.storage.log import Log, read_all
from streams.storage.records import NewRecord
from tests import events
from tests.e2e.installation import Part, everloop_json
from tests.kafka import declare_afresh

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]

ROLLOUTS = 200
KILLS = 4
DRAIN_S = 240.0


def feed(log: Log, number: int, random: Random) -> None:
    """Write one rewarded rollout, as the gateway would."""
    name = f"rollout-{number}"
    texts = [f"it helps {random.random():.1f}", f"it harms {random.random():.1f}"]
    choice = random.randrange(2)
    happened: list[AnyEvent] = [
        events.started(name),
        events.model_span(name, "geneticist", texts[choice]),
        events.decision(name, texts, choice),
        events.succeeded(name),
        events.reward(name, 0.9 if choice == 0 else 0.2),
    ]
    log.append([events.new_record(event) for event in happened])


def distinct_examples(log: Log, target: str) -> list[ExampleEvent]:
    """Return the examples of a target in the order of their partition, each the first time it
    comes.
    """
    found: dict[str, ExampleEvent] = {}
    for record in read_all(log, EXAMPLES.name):
        event = decode(ExampleEvent, record.value)
        if event.payload.target == target:
            found.setdefault(event.event_id, event)
    return list(found.values())


def test_workers_killed_on_kafka_lose_nothing_and_learn_nothing_twice(
    kafka: str, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, log=f"kafka://{kafka}")
    processors = all_processors(settings)
    (learning,) = learning_processors(settings)
    declare_afresh(kafka, processors)
    random = Random(17)
    moments = set(random.sample(range(20, ROLLOUTS), KILLS))
    more = {"EVERLOOP_LOG": f"kafka://{kafka}"}
    with (
        KafkaLog(Cluster(kafka)) as log,
        Part("worker", tmp_path, more) as worker,
        Part("learner", tmp_path, more) as learner,
    ):
        for number in range(ROLLOUTS):
            feed(log, number, random)
            if number in moments:
                time.sleep(
                    random.uniform(1.0, 6.0)
                )  # from before its first record to amid its next ones
                for part in random.choice([[worker], [learner], [worker, learner]]):
                    part.kill_and_restart()
        wait_until_drained(log, processors, DRAIN_S)
        learned = live_state(log, learning)
        assert learned is not None
        assert learned.state.examples == ROLLOUTS
        undisturbed = learning.learner.initial()
        for example in distinct_examples(log, learning.learner.target):
            undisturbed = learning.learner.fold(undisturbed, example)
        assert learning.learner.encode(learned.state) == learning.learner.encode(undisturbed)
        assert learning.learner.encode(
            on_the_embedded_log(log, learning, tmp_path)
        ) == learning.learner.encode(undisturbed)
        last = {
            r.key: decode(TrajectoryEvent, r.value).payload.reward
            for r in read_all(log, TRAJECTORIES.name)
        }
        assert Counter(reward in (0.9, 0.2) for reward in last.values()) == {True: ROLLOUTS}
        assert list(read_all(log, DEAD_LETTERS.name)) == []


def on_the_embedded_log(log: Log, learning: Learning[Any], folder: Path) -> Any:
    """Return what the same examples teach on the embedded log."""
    examples = [NewRecord(r.topic, r.key, r.value, r.headers) for r in read_all(log, EXAMPLES.name)]
    with EmbeddedLog(folder / "embedded.db") as embedded:
        embedded.append(examples)
        runner = EmbeddedRunner(embedded, learning, "test")
        while runner.run_once():
            pass
        learned = live_state(embedded, learning)
    assert learned is not None
    return learned.state


def shape(value: Any) -> Any:
    """Return a document's structure: names and types, numbers being one."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return shape(value[0]) if value else None
    return "number" if isinstance(value, int | float) else type(value).__name__


def test_a_demonstration_on_kafka_says_the_same_as_on_the_embedded_log(tmp_path: Path) -> None:
    on_kafka = everloop_json(tmp_path, "demo", "--rollouts", "20", "--log", "kafka")
    embedded = everloop_json(tmp_path, "demo", "--rollouts", "20")
    assert shape(on_kafka) == shape(embedded)
    for document in (on_kafka, embedded):
        assert (document["succeeded"], document["failed_requests"], document["lost_events"]) == (
            20,
            0,
            0,
        )
    assert on_kafka["policy_updates"] == embedded["policy_updates"]
