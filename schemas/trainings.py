"""Trainings: runs of batch learners, from the order to the weights, with their progress."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from schemas.envelope import Event, EventData, EventId, Name
from schemas.manifests import Manifest


class TrainingState(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({TrainingState.SUCCEEDED, TrainingState.FAILED, TrainingState.CANCELLED})
"""States that no run leaves."""


class Training(EventData):
    """A change or the progress of a run.

    Attributes:
        job: the run's id; the same manifest, configuration and parent give the same.
        order: event id of the command that asked for it; one order is carried out once.
        target: logical name of what learns.
        method: such as `sft`.
        manifest: what is learned from.
        config_sha256: of the configuration.
        parent: version whose weights the run began with; None for the base.
        step, steps: optimizer steps taken, and how many there will be; 0 before the first.
        metrics: by name, of the last step.
        version: of the checkpoint that came of it.
        reason: why it changed state.
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
    """A run changed state, or came further. Key: logical name."""

    type: Literal["training"] = "training"
    schema_version: int = Field(default=2, ge=1)
