"""What Agent Lightning's API takes and gives. The models are those of agentlightning 1.0.2."""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from schemas.envelope import Name


class LightningRolloutState(StrEnum):
    """Where a rollout stands, in its words."""

    QUEUING = "queuing"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


TRANSITIONS: dict[str, frozenset[str]] = {
    LightningRolloutState.QUEUING: frozenset(
        {LightningRolloutState.RUNNING, LightningRolloutState.FAILED}
    ),
    LightningRolloutState.RUNNING: frozenset(
        {LightningRolloutState.SUCCEEDED, LightningRolloutState.FAILED}
    ),
    LightningRolloutState.SUCCEEDED: frozenset(),
    LightningRolloutState.FAILED: frozenset(),
}
"""Legal next states."""


class LocalConfig(BaseModel):
    """How a rollout is run on its controller's machine."""

    agent_class: str | None = None
    env_map: dict[str, str] = {}


class K8sConfig(BaseModel):
    """How a rollout is run on Kubernetes."""

    job_template: str | None = None


class RunConfig(BaseModel):
    """What the controller reads of a rollout."""

    timeout_seconds: int = 3600
    local: LocalConfig | None = None
    k8s: K8sConfig | None = None


class Metadata(BaseModel):
    """What the algorithm keeps with a rollout."""

    model_config = ConfigDict(extra="allow")

    batch_idx: int | None = None
    sample_idx_in_batch: int | None = None


class NewLightningRollout(BaseModel):
    """A rollout to enqueue. With an id, enqueuing it twice is enqueuing it once."""

    input: Any
    is_train: bool = True
    config: RunConfig | None = None
    metadata: Metadata | None = None
    rollout_id: Name | None = None


class Status(BaseModel):
    """A rollout's lifecycle. Times are seconds since the unix epoch."""

    state: LightningRolloutState = LightningRolloutState.QUEUING
    k8s_job_name: str | None = None
    last_attempt_id: str | None = None
    error_message: str | None = None
    version: int = 1
    created_at: float
    updated_at: float


class StatusPatch(BaseModel):
    """A change of a rollout's status."""

    model_config = ConfigDict(extra="forbid")

    state: LightningRolloutState | None = None
    k8s_job_name: str | None = None
    last_attempt_id: str | None = None
    error_message: str | None = None


class RolloutPatch(BaseModel):
    """A change of a rollout."""

    status: StatusPatch | None = None


class LightningRollout(BaseModel):
    """A rollout."""

    rollout_id: str
    input: Any
    is_train: bool = True
    config: RunConfig
    metadata: Metadata = Metadata()
    status: Status


class AttemptEvent(BaseModel):
    """Something that happened in an attempt of a rollout."""

    event_type: str
    rollout_id: str
    attempt_id: str
    timestamp: float
    data: dict[str, Any]


class ModelServer(BaseModel):
    """A model server; known by model and endpoint."""

    model: str = Field(min_length=1)
    endpoint: str
    version: int = 0


class PauseState(BaseModel):
    """Whether the proxy refuses calls, and how many are under way."""

    paused: bool = False
    retry_after_seconds: int = Field(default=5, ge=0)
    reason: str | None = None
    inflight: int = 0
