"""A reward that is taken back leaves no trace in what was learned, live and in replay."""

from pathlib import Path
from typing import Any

import pytest

from learners.bandit import BanditLearner
from learners.bandit.features import features
from learners.datasets import DatasetConfig, sft_rows
from learners.gate import GateConfig
from schemas.decisions import Candidate
from schemas.envelope import AnyEvent
from schemas.examples import ExampleEvent
from schemas.rewards import RewardSource
from schemas.serialization import decode
from schemas.topics import EXAMPLES
from streams.processing.processor import Processor
from streams.processors.adapter import AdapterConfig
from streams.processors.batcher import BatchConfig, OpenBatch
from streams.processors.learner import Learned, Learning
from streams.processors.promotion import Promotion
from streams.processors.promotion_state import PromotionState
from streams.processors.router import ExampleRouter
from streams.processors.trajectories import JoinConfig, TrajectoryJoin
from streams.runners.embedded.runner import EmbeddedRunner
from streams.runners.replay import live_state, replay
from streams.storage.artifacts import ArtifactStore
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from tests import events

TARGET = "supervisor-policy"
ADAPTER = AdapterConfig(sft={"junior_llm": frozenset({"junior-0"})})
LEARNER = BanditLearner(TARGET)


def rollout(name: str, *rewards: AnyEvent) -> list[AnyEvent]:
    return [
        events.started(name),
        events.model_span(name, "junior-0", "refund"),
        events.decision(name, ["refund", "replace"], 0),
        events.succeeded(name),
        *rewards,
    ]


def run(log: EmbeddedLog, processor: Processor[object]) -> None:
    runner = EmbeddedRunner(log, processor, "t")
    while runner.run_once():
        pass
    runner.close()


def learned(folder: Path, *happened: AnyEvent) -> tuple[Learned[object], list[ExampleEvent]]:
    """Return what the bandit knows after these events, and the examples on the log.

    Live and replay must agree.
    """
    folder.mkdir()
    learning = Learning(LEARNER, ArtifactStore(folder / "artifacts"))
    router = ExampleRouter(ADAPTER, JoinConfig().late_reward_window)
    with EmbeddedLog(folder / "log.db") as log:
        for event in happened:
            log.append([events.new_record(event)])
            for processor in (TrajectoryJoin(), router, learning):
                run(log, processor)  # type: ignore[arg-type]
        live = live_state(log, learning)
        assert live is not None
        assert learning.encode_state(replay(log, learning)) == learning.encode_state(live)
        return live, [decode(ExampleEvent, record.value) for record in read_all(log, EXAMPLES.name)]  # type: ignore[return-value]


def believed(state: Learned[object]) -> list[float]:
    """Return the expected rewards of what the rollouts chose among, and of what they did not."""
    known = state.state.knowledge  # type: ignore[attr-defined]
    found = features(
        "which is best?", [Candidate(text=text) for text in ("refund", "replace", "wait")]
    )
    return [*known.regressor.predict_many(found), float(known.examples)]


OTHER = rollout("other", events.reward("other", 0.75))
POISON = events.reward("poisoned", 0.0)
RETRACTION = events.reward("poisoned", 0.0, supersedes=POISON.event_id, retracted=True)


def test_a_retracted_reward_leaves_the_weights_nearly_as_if_it_had_never_been_given(
    tmp_path: Path,
) -> None:
    """Of two examples only; the other one keeps the smaller gain that it had beside the poison."""
    poisoned = rollout("poisoned", POISON)
    without, _ = learned(tmp_path / "without", *OTHER)
    taught, _ = learned(tmp_path / "taught", *poisoned, *OTHER)
    after, sent = learned(tmp_path / "after", *poisoned, *OTHER, RETRACTION)
    assert believed(taught) != pytest.approx(believed(without), abs=0.2)
    assert believed(after) == pytest.approx(believed(without), abs=0.1)
    last = [event.payload for event in sent[-2:]]
    assert [(e.body.head, e.retracted, e.reward_revision, e.reward) for e in last] == [
        ("sft", True, 2, 0.0),
        ("bandit", True, 2, 0.0),
    ]


def test_a_reward_after_a_retraction_counts_in_the_place_of_the_first(tmp_path: Path) -> None:
    later = events.reward("poisoned", 1.0, time=events.at(60))
    right = rollout("poisoned", events.reward("poisoned", 1.0))
    expected, _ = learned(tmp_path / "expected", *right, *OTHER)
    after, _ = learned(tmp_path / "after", *rollout("poisoned", POISON), *OTHER, RETRACTION, later)
    assert believed(after) == pytest.approx(believed(expected), abs=0.02)


def test_a_reward_that_fell_back_to_another_source_is_corrected_and_not_retracted(
    tmp_path: Path,
) -> None:
    rule = events.reward("poisoned", 0.5, RewardSource.RULE)
    expected, _ = learned(tmp_path / "expected", *rollout("poisoned", rule))
    after, sent = learned(tmp_path / "after", *rollout("poisoned", rule, POISON, RETRACTION))
    assert believed(after) == pytest.approx(believed(expected), abs=0.02)
    assert not any(event.payload.retracted for event in sent)


def test_a_retracted_example_is_in_no_dataset_and_fills_no_batch(tmp_path: Path) -> None:
    good = events.reward("r", 1.0)
    gone = events.reward("r", 1.0, supersedes=good.event_id, retracted=True)
    _, sent = learned(tmp_path / "log", *rollout("r", good), *OTHER, gone)
    conversations = [event for event in sent if event.payload.body.head == "sft"]
    given, _, retracted = conversations
    assert len(sft_rows([given], DatasetConfig())) == 1
    assert sft_rows([given, retracted], DatasetConfig()) == []
    batch, config = OpenBatch(), BatchConfig()
    batch.take(events.record(retracted, 7, "junior_llm"), retracted, config)
    assert batch == OpenBatch(), "it is about a batch before"
    batch.take(events.record(given, 8, "junior_llm"), given, config)
    batch.take(events.record(retracted, 9, "junior_llm"), retracted, config)
    assert batch.examples == 1
    assert list(batch.ranges.values()) == [(8, 9)], "who trains on it must read the retraction"
    assert batch.rewards.count == 1


@pytest.mark.parametrize("retracted", [False, True])
def test_a_retracted_reward_is_no_evidence_for_the_gate(tmp_path: Path, retracted: bool) -> None:
    promotion = Promotion(GateConfig(), ArtifactStore(tmp_path))
    more: dict[str, Any] = {"split": "validation", "decisions": [events.decision_of(["a", "b"], 0)]}
    given = events.outcome("r", "uniform", 1.0, **more)
    gone = events.outcome("r", "uniform", None, after=2.0, **more)
    state: PromotionState | None = None
    for offset, event in enumerate([given, gone] if retracted else [given]):
        state = promotion.handle(state, event, events.record(event, offset, TARGET)).state
    assert state is not None
    assert len(state.evidence.held_out) == (0 if retracted else 1)
