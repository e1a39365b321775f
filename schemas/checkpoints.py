"""Checkpoints: versions of what a learner produced, their lifecycle and their lineage."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from schemas.endpoints import Endpoint
from schemas.envelope import Event, EventData, Name, with_present_names


class CheckpointState(StrEnum):
    """The state of a checkpoint."""

    CANDIDATE = "candidate"
    EVALUATED = "evaluated"
    CANARY = "canary"
    PROMOTED = "promoted"
    RETIRED = "retired"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled-back"


TRANSITIONS: dict[CheckpointState, frozenset[CheckpointState]] = {
    CheckpointState.CANDIDATE: frozenset({CheckpointState.EVALUATED, CheckpointState.REJECTED}),
    CheckpointState.EVALUATED: frozenset(
        {CheckpointState.CANARY, CheckpointState.PROMOTED, CheckpointState.REJECTED}
    ),
    CheckpointState.CANARY: frozenset({CheckpointState.PROMOTED, CheckpointState.ROLLED_BACK}),
    CheckpointState.PROMOTED: frozenset({CheckpointState.RETIRED, CheckpointState.ROLLED_BACK}),
    # A retired checkpoint serves again when its successor is rolled back.
    CheckpointState.RETIRED: frozenset({CheckpointState.PROMOTED}),
    # A person may promote what the gate refused.
    CheckpointState.REJECTED: frozenset({CheckpointState.PROMOTED}),
    CheckpointState.ROLLED_BACK: frozenset({CheckpointState.PROMOTED}),
}
"""Legal next states."""

Kind = Literal["policy", "model", "adapter", "prompt", "memory", "workflow"]


class Artifact(EventData):
    """A reference into the artifact store, which is addressed by content.

    Attributes:
        sha256: of the bytes, 64 hexadecimal digits.
        size: in bytes.
        media_type: such as `application/vnd.everloop.bandit+json`.
    """

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size: int = Field(ge=0)
    media_type: str


class OffsetRange(EventData):
    """Records `first` to `last`, both included, of one partition."""

    topic: str
    partition: int = Field(ge=0)
    first: int = Field(ge=0)
    last: int = Field(ge=0)


class Lineage(EventData):
    """From a checkpoint back to the events that taught it.

    Attributes:
        learner: name and version of the learner, such as `bandit@1`.
        config_sha256: of the learner's configuration.
        ranges: offsets of the examples that the learner has folded.
        examples: number of examples that changed its weights.
        parent: version that it was trained from.
        corrections: how the learner takes back what a corrected or retracted reward taught: to the
            last bit, nearly, or not at all; empty where that was not noted.
        uncorrected: corrections and retractions of examples that taught it, which came before it
            was announced and did not change it.
    """

    learner: Name
    config_sha256: str
    ranges: list[OffsetRange] = []
    examples: int = Field(ge=0)
    parent: str | None = None
    corrections: Literal["exact", "approximate", "none", ""] = ""
    uncorrected: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, document: Any) -> Any:
        return with_present_names(document, lessons="examples")


class Checkpoint(EventData):
    """A change of a checkpoint's state.

    Attributes:
        name: logical name, such as `supervisor-policy`.
        version: unique within the name; ends in the start of the artifact's hash.
        endpoint: where a model or an adapter is served already, so that a trial can use it.
        metrics: measured numbers, by name.
        reason: why the state changed.
        by_hand: whether a person changed it. The route that the person wants comes with it.
    """

    name: Name
    version: Name
    kind: Kind
    state: CheckpointState
    artifact: Artifact | None = None
    endpoint: Endpoint | None = None
    lineage: Lineage | None = None
    metrics: dict[str, float] = {}
    reason: str = ""
    by_hand: bool = False


class CheckpointEvent(Event[Checkpoint]):
    """A checkpoint changed state. Key: logical name."""

    type: Literal["checkpoint"] = "checkpoint"
    schema_version: int = Field(default=2, ge=1)
