"""Candidates pass the gate on held-out rollouts, go on trial, and are watched."""

from pathlib import Path

from learners.bandit import MEDIA_TYPE
from schemas.checkpoints import Artifact
from streams.processors.promotion_state import baseline_route
from streams.storage.artifacts import ArtifactStore
from streams.storage.embedded.log import EmbeddedLog
from tests.streams.promotions import (
    TARGET,
    candidate,
    controls,
    gate,
    held_out,
    later,
    policy,
    promoted,
    rewarded,
    served,
    side_by_side,
)


def test_a_better_policy_is_promoted_and_its_successor_retires_it(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    changes = promoted(
        log,
        store,
        *held_out(40),
        *later(),
        candidate(store, "v1", policy(0.9)),
        candidate(store, "v2", policy(0.95)),
    )
    assert [(version, state) for version, state, _ in changes] == [
        ("v1", "candidate"),
        ("v1", "evaluated"),
        ("v1", "promoted"),
        ("v2", "candidate"),
        ("v2", "evaluated"),
        ("v1", "retired"),
        ("v2", "promoted"),
    ]
    assert served(log) == ["v1", "v2"]


def test_a_worse_policy_is_rejected_with_the_numbers(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    changes = promoted(
        log,
        store,
        *held_out(40),
        *later(),
        candidate(store, "v1", policy(0.9)),
        candidate(store, "worse", policy(0.1)),
        candidate(store, "v2", policy(0.95)),
    )
    assert [(version, state) for version, state, _ in changes][3:6] == [
        ("worse", "candidate"),
        ("v2", "candidate"),
        ("worse", "rejected"),
    ]
    assert "superseded by v2" in changes[5][2]
    assert "lower bound" in changes[5][2]
    assert served(log) == ["v1", "v2"]


def test_a_candidate_waits_until_there_is_evidence_enough(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    train_only = rewarded("uniform", 1.0, 40)
    first = [*train_only, *held_out(3), *later(), candidate(store, "v1", policy(0.9))]
    assert promoted(log, store, *first) == [("v1", "candidate", "")]
    assert gate(log).text.startswith("v1 waits: 3 held-out rollouts with a reward, 12 needed")
    changes = promoted(log, store, *held_out(40), *later())
    assert [state for _, state, _ in changes] == ["candidate", "evaluated", "promoted"]


def test_ten_decisions_of_a_rollout_are_one_piece_of_evidence(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    repeated = [
        event.model_copy(
            update={
                "payload": event.payload.model_copy(
                    update={"decisions": event.payload.decisions * 10}
                )
            }
        )
        for event in held_out(4)
    ]
    promoted(log, store, *repeated, *later(), candidate(store, "v1", policy(0.9)))
    assert gate(log).evidence == 4


def test_a_version_that_earns_less_than_what_it_replaced_is_taken_back(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    begin = [*held_out(40), *later(), candidate(store, "v1", policy(0.9))]
    second = candidate(store, "v2", policy(0.95))
    changes = promoted(log, store, *begin, second, *side_by_side(60, v2=0.1, v1=0.9))
    assert [(version, state) for version, state, _ in changes][-3:] == [
        ("v2", "promoted"),
        ("v2", "rolled-back"),
        ("v1", "promoted"),
    ]
    assert "it earns less than v1, surely" in changes[-2][2]
    assert served(log) == ["v1", "v2", "v1"]


def test_a_world_that_falls_for_both_takes_nothing_back(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    begin = [*held_out(40), *later(), candidate(store, "v1", policy(0.9))]
    worlds = [*side_by_side(20, v1=0.9, uniform=0.8), *side_by_side(200, v1=0.2, uniform=0.1)]
    changes = promoted(log, store, *begin, *worlds)
    assert changes[-1][1] == "promoted"
    assert controls(log) == [{"uniform": 0.5}, {}], "the control ends with the watch"


def test_what_cannot_be_loaded_is_rejected(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    missing = candidate(store, "missing", b"")
    lost = Artifact(sha256="0" * 64, size=1, media_type=MEDIA_TYPE)
    missing = missing.model_copy(
        update={"payload": missing.payload.model_copy(update={"artifact": lost})}
    )
    changes = promoted(log, store, candidate(store, "broken", b"{}"), missing)
    rejected = [(version, reason) for version, state, reason in changes if state == "rejected"]
    assert [version for version, _ in rejected] == ["broken", "missing"]
    assert all("cannot be served" in reason for _, reason in rejected)


def test_before_anything_is_learned_the_uniform_baseline_serves() -> None:
    assert [target.version for target in baseline_route(TARGET).targets] == ["uniform"]
