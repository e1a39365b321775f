"""Trainings: runs of batch learners, from order to weights, with their progress."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from schemas.envelope import Event, EventData, EventId, Name
from schemas.manifests import Manifest


class TrainingState(StrEnum):
    """The state of a training run."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({TrainingState.SUCCEEDED, TrainingState.FAILED, TrainingState.CANCELLED})
"""States that no run leaves."""


class Training(EventData):
    """A change of a training run's state, or its progress.

    Attributes:
        job: id of the run; the same manifest, configuration and parent give the same id.
        order: event id of the command that ordered it; an order is carried out once.
        target: logical name of the learner's target.
        method: such as `sft`.
        manifest: the examples that it reads.
        config_sha256: hash of the configuration.
        parent: version whose weights the run starts from; None for the base.
        step: optimizer steps taken; 0 before the first.
        steps: optimizer steps of the whole run; 0 before the first.
        metrics: metrics of the last step, by name.
        version: version of the resulting checkpoint.
        reason: why the state changed.
    """

    job: Name
    order: EventId
    target: Name
    method: Name
    state: TrainingState
    manifest: Manifest
    config_sha256: str
    parent: str | None = None
    step: int = Field(default=0, ge=0)
    steps: int = Field(default=0, ge=0)
    metrics: dict[str, float] = {}
    version: str | None = None
    reason: str = ""


class TrainingEvent(Event[Training]):
    """A run changed its state or made progress. Key: logical name."""

    type: Literal["training"] = "training"
    schema_version: int = Field(default=2, ge=1)
