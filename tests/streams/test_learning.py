"""A learner on the log: announced in time, the same in replay, after a crash and from repeats."""

from pathlib import Path

import pytest

from learners.announcements import AnnouncementConfig
from learners.bandit import BanditConfig, BanditLearner, BanditState
from schemas.checkpoints import CheckpointEvent, CheckpointState
from schemas.examples import ExampleEvent
from schemas.serialization import decode
from schemas.topics import CHECKPOINTS, EXAMPLES
from streams.processors.learner import Learning
from streams.runners.embedded.runner import EmbeddedRunner
from streams.runners.replay import live_state, replay
from streams.storage.artifacts import ArtifactStore
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.errors import RejectedRecordError
from streams.storage.log import read_all
from streams.storage.records import NewRecord
from tests import events

TARGET = "supervisor-policy"
ANNOUNCE = AnnouncementConfig(first=5, growth=1.0)


def learning(folder: Path, target: str = TARGET, **config: object) -> Learning[object]:
    learner = BanditLearner(target, BanditConfig.model_validate({"announce": ANNOUNCE} | config))
    return Learning(learner, ArtifactStore(folder / "artifacts"))  # type: ignore[arg-type]


def examples(count: int) -> list[NewRecord]:
    texts = ["the effect was significant", "nothing is known"]
    made = [events.example(texts, number % 2, float(number % 2 == 0)) for number in range(count)]
    return [events.new_record(event, TARGET) for event in made]


def run(log: EmbeddedLog, processor: Learning[object], batch: int = 500) -> None:
    runner = EmbeddedRunner(log, processor, "t", batch=batch)
    while runner.run_once():
        pass
    runner.close()


def announced(log: EmbeddedLog) -> list[CheckpointEvent]:
    return [decode(CheckpointEvent, record.value) for record in read_all(log, CHECKPOINTS.name)]


def test_checkpoints_are_announced_with_their_lineage(log: EmbeddedLog, tmp_path: Path) -> None:
    log.append(examples(12))
    run(log, learning(tmp_path))
    first, second = (event.payload for event in announced(log))
    assert {first.state, second.state} == {CheckpointState.CANDIDATE}
    assert first.lineage is not None
    assert second.lineage is not None
    assert (first.lineage.examples, second.lineage.examples) == (5, 10)
    assert (first.lineage.parent, second.lineage.parent) == (None, first.version)
    assert [(r.first, r.last) for r in second.lineage.ranges] == [(0, 9)]
    assert second.artifact is not None
    stored = ArtifactStore(tmp_path / "artifacts").get(second.artifact)
    assert len(stored) == second.artifact.size


@pytest.mark.parametrize("batch", [1, 3, 500])
def test_replay_gives_the_live_weights_bit_for_bit(
    log: EmbeddedLog, tmp_path: Path, batch: int
) -> None:
    log.append(examples(30))
    processor = learning(tmp_path)
    run(log, processor, batch)
    live = live_state(log, processor)
    assert live is not None
    assert processor.encode_state(replay(log, processor)) == processor.encode_state(live)
    later = replay(log, processor, dict.fromkeys(range(4), 10))
    assert later.state.examples == 20  # type: ignore[attr-defined]


def test_a_poison_example_changes_no_weight(log: EmbeddedLog, tmp_path: Path) -> None:
    """The fold stops after it has begun to change the state: that half example must not stay."""

    class Fragile(BanditLearner):
        def fold(self, state, event: ExampleEvent):  # type: ignore[no-untyped-def]
            changed = super().fold(state, event)
            if event.payload.reward == 0.125:
                raise ArithmeticError("overflow")
            return changed

    clean = examples(8)
    poisoned = list(clean)
    poisoned.insert(4, events.new_record(events.example(["a", "b"], 0, 0.125), TARGET))
    store = ArtifactStore(tmp_path / "artifacts")
    processor = Learning(Fragile(TARGET, BanditConfig(announce=ANNOUNCE)), store)
    log.append(poisoned)
    runner = EmbeddedRunner(log, processor, "t")
    runner.run_once()
    live = live_state(log, processor)
    with EmbeddedLog(tmp_path / "clean.db") as other:
        other.append(clean)
        run(other, learning(tmp_path))
        undisturbed = live_state(other, learning(tmp_path))
    assert live is not None
    assert undisturbed is not None
    assert isinstance(live.state, BanditState)
    assert isinstance(undisturbed.state, BanditState)
    assert live.state.knowledge.to_bytes() == undisturbed.state.knowledge.to_bytes()
    assert processor.encode_state(replay(log, processor)) == processor.encode_state(live)


def test_records_at_or_below_the_saved_offset_are_ignored(log: EmbeddedLog, tmp_path: Path) -> None:
    log.append(examples(6))
    processor = learning(tmp_path)
    run(log, processor)
    live = live_state(log, processor)
    assert live is not None
    before = processor.encode_state(live)
    for record in read_all(log, "everloop.examples"):
        outcome = processor.handle(live, decode(ExampleEvent, record.value), record)
        assert outcome.records == ()
    assert processor.encode_state(live) == before


def test_another_configuration_learns_from_the_beginning(log: EmbeddedLog, tmp_path: Path) -> None:
    log.append(examples(6))
    run(log, learning(tmp_path))
    changed = learning(tmp_path, noise_share=0.2)
    assert live_state(log, changed) is None
    run(log, changed)
    state = live_state(log, changed)
    assert state is not None
    assert state.state.examples == 6  # type: ignore[attr-defined]


def test_examples_for_others_are_none_of_its_business(log: EmbeddedLog, tmp_path: Path) -> None:
    log.append(examples(6))
    run(log, learning(tmp_path, target="another-policy"))
    assert announced(log) == []


def test_an_artifact_is_checked_when_it_is_read(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    artifact = store.put(b"weights", "text/plain")
    assert store.put(b"weights", "text/plain") == artifact
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    path.write_bytes(b"weightz")
    with pytest.raises(RejectedRecordError, match="damaged"):
        store.get(artifact)
    path.unlink()
    with pytest.raises(RejectedRecordError, match="is not in"):
        store.get(artifact)


def test_replay_passes_over_however_many_records_that_cannot_be_read(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    log.append(examples(3))
    log.append([NewRecord(EXAMPLES.name, TARGET.encode(), b"not json") for _ in range(1500)])
    log.append(examples(4))
    processor = learning(tmp_path)
    reads = []
    learned = replay(log, processor, on_record=lambda: reads.append(1))
    assert processor.encode_state(learned) == processor.encode_state(
        replay(log, processor, without=frozenset({"none"}))
    )
    assert len(reads) == 1507, "what is not even decoded is no reason to begin again"
    assert learned.state.examples == 7  # type: ignore[attr-defined]
