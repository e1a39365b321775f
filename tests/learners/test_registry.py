"""A checkpoint goes only where its state allows."""

import itertools

import pytest

from learners.registry import IllegalTransitionError, Registry
from schemas.checkpoints import TRANSITIONS, Artifact, Checkpoint, CheckpointState


def change(state: CheckpointState, **more: object) -> Checkpoint:
    return Checkpoint.model_validate(
        {"name": "p", "version": "v1", "kind": "policy", "state": state} | more
    )


@pytest.mark.parametrize(("before", "after"), list(itertools.product(CheckpointState, repeat=2)))
def test_only_legal_transitions_are_taken(before: CheckpointState, after: CheckpointState) -> None:
    registry = Registry({"v1": change(before)})
    if after in TRANSITIONS[before]:
        registry.apply(change(after))
        assert registry.checkpoints["v1"].state is after
    else:
        with pytest.raises(IllegalTransitionError, match=f"cannot go from {before} to {after}"):
            registry.apply(change(after))
        assert registry.checkpoints["v1"].state is before


def test_a_checkpoint_begins_as_a_candidate() -> None:
    with pytest.raises(
        IllegalTransitionError, match="from unknown to promoted; from there: candidate"
    ):
        Registry().apply(change(CheckpointState.PROMOTED))


def test_what_a_change_does_not_say_stays() -> None:
    registry = Registry()
    artifact = Artifact(sha256="0" * 64, size=1, media_type="x")
    registry.apply(change(CheckpointState.CANDIDATE, artifact=artifact, metrics={"a": 1.0}))
    registry.apply(change(CheckpointState.EVALUATED, metrics={"b": 2.0}))
    assert registry.promoted is None
    registry.apply(change(CheckpointState.PROMOTED))
    assert registry.promoted is not None
    assert registry.promoted.artifact == artifact
    assert registry.promoted.metrics == {"a": 1.0, "b": 2.0}
