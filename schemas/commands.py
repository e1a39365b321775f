"""Commands: what a person or a schedule asks of a learner."""

from typing import Literal

from pydantic import Field, JsonValue

from schemas.envelope import Event, EventData, Name
from schemas.manifests import Manifest


class Command(EventData):
    """An order to the learner behind a logical name.

    Attributes:
        manifest: what to train on; None leaves it to whoever collects the batch.
        arguments: of `train`, `method` where several learn from the same examples; of `cancel`,
            `job`.
    """

    target: Name
    action: Literal["train", "cancel", "pause", "resume", "rewind"]
    manifest: Manifest | None = None
    arguments: dict[str, JsonValue] = {}
    reason: str = ""


class CommandEvent(Event[Command]):
    """A learner was told to do something. Key: logical name."""

    type: Literal["command"] = "command"
    schema_version: int = Field(default=2, ge=1)
