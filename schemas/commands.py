"""Commands: what a person or a schedule asks of a learner."""

from typing import Literal

from pydantic import JsonValue

from schemas.envelope import Event, Model, Name


class Command(Model):
    """An order to the learner behind a logical name."""

    target: Name
    action: Literal["train", "pause", "resume", "rewind"]
    arguments: dict[str, JsonValue] = {}
    reason: str = ""


class CommandEvent(Event[Command]):
    """A learner was told to do something. Key: logical name."""

    type: Literal["command"] = "command"
