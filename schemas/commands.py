"""Commands: a person or a schedule tells a learner to do something."""

from typing import Literal

from pydantic import Field, JsonValue

from schemas.envelope import Event, EventData, Name
from schemas.manifests import Manifest


class Command(EventData):
    """An order to the learner behind a logical name.

    Attributes:
        manifest: examples to train on; None lets the collector of the batch choose.
        arguments: `method` for `train`, if several methods learn from the same examples; `job` for
            `cancel`.
    """

    target: Name
    action: Literal["train", "cancel", "pause", "resume", "rewind"]
    manifest: Manifest | None = None
    arguments: dict[str, JsonValue] = {}
    reason: str = ""


class CommandEvent(Event[Command]):
    """A learner got an order. Key: logical name."""

    type: Literal["command"] = "command"
    schema_version: int = Field(default=2, ge=1)
