"""Workers and learners are killed with SIGKILL at random moments: what is learned is what it would
have been.
"""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from infra.config.settings import Settings
from infra.installation.processors import learning_processors, stream_processors
from schemas.examples import ExampleEvent
from schemas.serialization import decode
from schemas.topics import DECISIONS, EXAMPLES, ROLLOUTS, SPANS
from streams.runners.lag import wait_until_drained
from streams.runners.replay import live_state, replay
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from streams.storage.records import NewRecord
from tests.e2e.installation import Part, everloop_json, started
from tests.waiting import PATIENCE_S, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

RAW = (ROLLOUTS.name, SPANS.name, DECISIONS.name)
"""What only the gateway writes; all else follows from it."""
CHUNK = 40
DRAIN_S = PATIENCE_S


def raw_records(log: EmbeddedLog) -> list[NewRecord]:
    """Return what the gateway wrote, in the order it was appended."""
    records = sorted(
        (record for topic in RAW for record in read_all(log, topic)), key=lambda r: r.sequence
    )
    return [NewRecord(record.topic, record.key, record.value, record.headers) for record in records]


def learned_from(raw: list[NewRecord], data_dir: Path, kills: int = 0, seed: int = 0) -> bytes:
    """Feed raw events to a worker and a learner, killing one or both now and then; return the
    learner's state.
    """
    data_dir.mkdir()
    settings = Settings(data_dir=data_dir)
    chunks = [raw[start : start + CHUNK] for start in range(0, len(raw), CHUNK)]
    random = Random(seed)
    moments = set(random.sample(range(2, len(chunks)), kills))
    learning = learning_processors(settings)
    with (
        EmbeddedLog(settings.log_path) as log,
        Part("worker", data_dir) as worker,
        Part("learner", data_dir) as learner,
    ):
        for number, chunk in enumerate(chunks):
            log.append(chunk)
            time.sleep(0.01)
            if number in moments:
                time.sleep(
                    random.uniform(0, 2.5)
                )  # from before its first batch to amid its next ones
                for part in random.choice([[worker], [learner], [worker, learner]]):
                    part.kill_and_restart()
        wait_until_drained(log, [*stream_processors(settings), *learning], DRAIN_S)
        state = live_state(log, learning[0])
        assert state is not None
        assert_each_example_once(log, state.state.examples)
        assert learning[0].encode_state(replay(log, learning[0])) == learning[0].encode_state(state)
        return learning[0].encode_state(state)


def assert_each_example_once(log: EmbeddedLog, learned: int) -> None:
    """Every example is on its topic once, and the learner has counted as many examples as there
    are.
    """
    examples = [decode(ExampleEvent, record.value) for record in read_all(log, EXAMPLES.name)]
    assert set(Counter(example.event_id for example in examples).values()) == {1}
    examples = [
        e for e in examples if e.payload.body.head == "bandit" and e.payload.split == "train"
    ]
    assert learned == len(examples)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """Run a demonstration in whose middle worker and learner are killed; return its data folder and
    what it printed.
    """
    home = tmp_path_factory.mktemp("killed")
    process = started(home, "demo", "--rollouts", "60", "--json")
    random = Random(os.urandom(8))
    (run_file,) = eventually(
        lambda: list(home.glob("demo/*/run.json")), "the demonstration's run file"
    )
    for name in ("worker", "learner", "worker"):
        time.sleep(random.uniform(0.5, 3.0))
        killed = json.loads(run_file.read_text())["processes"][name]["pid"]
        os.kill(killed, signal.SIGKILL)
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    return run_file.parent, json.loads(output)


def test_a_demonstration_survives_the_death_of_worker_and_learner(
    demo: tuple[Path, dict[str, object]],
) -> None:
    _, result = demo
    assert result["failed_requests"] == 0
    assert result["lost_events"] == 0
    assert result["succeeded"] == result["rollouts"] == 60
    assert int(str(result["policy_updates"])) > 30


def test_replay_gives_the_weights_of_the_live_learner_that_was_killed(
    demo: tuple[Path, dict[str, object]],
) -> None:
    data_dir, result = demo
    replayed = everloop_json(data_dir, "replay", "--learner", "bandit", "--from", "beginning")
    assert replayed["identical"]
    assert replayed["weights_sha256"] == result["weights_sha256"]
    assert replayed["examples"] == result["policy_updates"]


def test_killed_or_not_the_same_raw_events_teach_the_same_to_the_last_bit(
    demo: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    data_dir, _ = demo
    with EmbeddedLog(data_dir / "log.db") as log:
        raw = raw_records(log)
        learning = learning_processors(Settings(data_dir=data_dir))[0]
        live = live_state(log, learning)
    assert live is not None
    undisturbed = learned_from(raw, tmp_path / "undisturbed")
    assert learning.encode_state(live) == undisturbed
    for seed in range(4):
        assert learned_from(raw, tmp_path / f"killed-{seed}", kills=3, seed=seed) == undisturbed
