"""Trackers are told each step, by the library that people use."""

from pathlib import Path

import pytest

from infra.training.trackers import trackers
from schemas.checkpoints import OffsetRange
from schemas.identifiers import derived_event_id
from schemas.manifests import Manifest
from schemas.topics import EXAMPLES
from schemas.trainings import Training, TrainingState
from tests import events

LOSSES = [3.0, 2.0, 0.5]


def told() -> list[Training]:
    """Return a run's steps, and its end."""
    ranges = [OffsetRange(topic=EXAMPLES.name, partition=0, first=0, last=3)]
    run = Training(
        job="sft-1",
        order=derived_event_id(events.START, "order"),
        target="writer",
        method="sft",
        state=TrainingState.RUNNING,
        manifest=Manifest(target="writer", head="sft", ranges=ranges, examples=4, number=1),
        config_sha256="0" * 64,
    )
    steps = [
        run.model_copy(update={"step": n, "metrics": {"loss": loss}})
        for n, loss in enumerate(LOSSES, 1)
    ]
    return [*steps, steps[-1].model_copy(update={"state": TrainingState.SUCCEEDED, "metrics": {}})]


def test_tensorboard_has_every_step(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (track,) = trackers(["tensorboard"], tmp_path)
    for step in told():
        track(step)
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "sft-1")).Reload()
    values = (
        [found.Tensors("loss")] if "loss" in found.Tags()["tensors"] else [found.Scalars("loss")]
    )
    assert [event.step for event in values[0]] == [1, 2, 3]


def test_weights_and_biases_keeps_a_run_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (track,) = trackers(["wandb"], tmp_path)
    for step in told():
        track(step)
    (kept,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"loss" in kept.read_bytes()
