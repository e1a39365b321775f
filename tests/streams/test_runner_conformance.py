"""What both runners keep, embedded and Faust, whatever becomes of their processes."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import orjson
import psutil
import pytest

from schemas.dead_letters import DeadLetter
from schemas.rewards import RewardEvent
from schemas.rollouts import RolloutState
from schemas.serialization import decode
from schemas.topics import REWARDS, ROLLOUTS, TRAJECTORIES
from streams.processing.dead_letters import dead_letters, put_back
from streams.runners.lag import behind
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.kafka.cluster import Cluster
from streams.storage.kafka.log import KafkaLog
from streams.storage.log import Log, read_all
from streams.storage.records import NewRecord
from tests import events
from tests.kafka import declare_afresh
from tests.streams.ledger import DEFECT, REJECTED, Ledger
from tests.waiting import PATIENCE_S, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LEASE_S = 2.0
GROUP = Ledger().group
KEYS = 12
SCALE = 9973  # prime, so that no number becomes one of the ledger's two poisons


@dataclass
class Place:
    """A log with workers on it."""

    url: str
    folder: Path
    log: Log

    @contextmanager
    def worker(self, name: str = "worker") -> Iterator[subprocess.Popen[bytes]]:
        """Run a worker with a folder of its own, and stop it at the end."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "tests.streams.ledger",
            self.url,
            str(folder),
            str(LEASE_S),
        ]
        with (self.folder / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            yield process
            if process.poll() is None:
                process.terminate()
                assert process.wait(PATIENCE_S) in (0, -signal.SIGTERM)
        finally:
            process.kill()
            process.wait()

    def done(self) -> None:
        """Wait until everything is processed."""
        eventually(lambda: behind(self.log, Ledger()) == 0, "the end of the log")

    def stored(self, key: str) -> list[float]:
        """Return a key's state."""
        return list(orjson.loads(self.log.state(GROUP, key) or b"[]"))

    def answered(self) -> int:
        """Return how many outputs there are."""
        return sum(1 for _ in read_all(self.log, TRAJECTORIES.name))

    def answers(self) -> dict[str, list[RewardEvent]]:
        """Return the outputs by key, each once and in the order of the log."""
        found: dict[str, dict[str, RewardEvent]] = {}
        for record in read_all(self.log, TRAJECTORIES.name):
            event = decode(RewardEvent, record.value)
            found.setdefault(event.rollout_id, {}).setdefault(event.event_id, event)
        return {key: list(values.values()) for key, values in found.items()}


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "embedded":
        with EmbeddedLog(tmp_path / "log.db") as log:
            yield Place(f"sqlite:///{tmp_path / 'log.db'}", tmp_path, log)
        return
    bootstrap: str = request.getfixturevalue("kafka")
    declare_afresh(bootstrap, [Ledger()])
    with KafkaLog(Cluster(bootstrap)) as kafka:
        yield Place(f"kafka://{bootstrap}", tmp_path, kafka)


def reward(number: int, value: float | None = None) -> NewRecord:
    """Return the number-th reward, of one of several keys; its value tells it apart."""
    return events.new_record(
        events.reward(f"r{number % KEYS}", number / SCALE if value is None else value)
    )


def check(place: Place, count: int) -> None:
    """Check that `count` rewards were taken in, each key's in order and each once."""
    answers = place.answers()
    for key in range(KEYS):
        expected = [number / SCALE for number in range(key, count, KEYS)]
        assert [event.payload.value for event in answers[f"r{key}"]] == expected
        assert [event.payload.grader for event in answers[f"r{key}"]] == [
            str(n + 1) for n in range(len(expected))
        ]
    for key in (0, KEYS - 1):
        assert place.stored(f"r{key}") == [number / SCALE for number in range(key, count, KEYS)]


def test_each_keys_records_are_taken_in_order_and_states_survive_their_worker(place: Place) -> None:
    place.log.append([reward(number) for number in range(100)])
    place.log.append([events.new_record(events.started("r0"))])
    with place.worker("first"):
        place.done()
    check(place, 100)
    place.log.append([reward(number) for number in range(100, 150)])
    with place.worker("second"):  # which has nothing of the first one's folder
        place.done()
    check(place, 150)


def test_poison_is_set_aside_whole_and_can_be_put_back(place: Place) -> None:
    place.log.append([reward(0), reward(0, REJECTED), reward(0, DEFECT)])
    place.log.append(
        [NewRecord(REWARDS.name, b"r0", b"\xff\x00no json", (("origin", b"\x00test"),))]
    )
    place.log.append([NewRecord(REWARDS.name, b"r0", None), reward(KEYS)])
    with place.worker():
        place.done()
    assert place.stored("r0") == [0.0, KEYS / SCALE]
    letters: list[DeadLetter] = [event.payload for _, event in dead_letters(place.log)]
    assert [letter.error_type for letter in letters] == [
        "RejectedRecordError",
        "ZeroDivisionError",
        "UndecodableError",
        "UndecodableError",
    ]
    assert (letters[2].key, letters[2].value) == (b"r0", b"\xff\x00no json")
    assert [(header.name, header.value) for header in letters[2].headers] == [
        ("origin", b"\x00test")
    ]
    assert put_back(place.log, list(dead_letters(place.log))) == 4
    with place.worker("again"):
        place.done()
    assert place.stored("r0") == [0.0, KEYS / SCALE]
    assert (
        Counter(event.payload.error_type for _, event in dead_letters(place.log))[
            "UndecodableError"
        ]
        == 4
    )


def test_a_worker_killed_again_and_again_repeats_no_effect(place: Place) -> None:
    random, count = Random(11), 1200
    for start in range(0, count, 400):
        place.log.append([reward(number) for number in range(start, start + 400)])
        with place.worker() as worker:
            eventually(lambda: place.answered() > start, "some of its outputs")  # noqa: B023
            time.sleep(random.uniform(0.0, 0.5))
            worker.kill()
            worker.wait()
    with place.worker():
        place.done()
    check(place, count)


def test_two_workers_share_the_partitions_and_one_takes_over_when_the_other_dies(
    place: Place,
) -> None:
    count = 600
    with place.worker("first") as first, place.worker("second"):
        for number in range(0, count, 20):
            place.log.append([reward(number + more) for more in range(20)])
            if number == 200:
                eventually(lambda: place.answered() > 100, "outputs")
                first.kill()
        place.done()
    check(place, count)


def test_a_worker_that_was_paused_changes_nothing_that_its_successor_did(place: Place) -> None:
    with place.worker("paused") as paused:
        place.log.append([reward(number) for number in range(200)])
        eventually(lambda: place.answered() > 0, "outputs")
        os.kill(paused.pid, signal.SIGSTOP)
        place.log.append([reward(number) for number in range(200, 400)])
        with place.worker("successor"):
            place.done()
            os.kill(paused.pid, signal.SIGCONT)
            place.log.append([reward(number) for number in range(400, 500)])
            place.done()
    with place.worker("last"):  # which knows only what is stored
        place.log.append([reward(number) for number in range(500, 520)])
        place.done()
    check(place, 520)


def test_large_records_are_taken_in_bounded_memory(place: Place) -> None:
    large = "x" * 2**20
    records = 150
    for number in range(records):
        event = events.rollout(f"r{number % KEYS}", RolloutState.SUCCEEDED, output={"text": large})
        place.log.append([events.new_record(event)])
    with place.worker() as worker:
        peak = 0

        def taken() -> bool:
            nonlocal peak
            peak = max(peak, psutil.Process(worker.pid).memory_info().rss)
            return behind(place.log, Ledger()) == 0

        eventually(taken, "the end of the log")
    assert sum(1 for _ in read_all(place.log, ROLLOUTS.name)) == records
    assert peak < 900 * 2**20
