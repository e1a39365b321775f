"""Dead letters: records that could not be read or processed, complete, with the reason."""

from typing import Literal

from pydantic import Base64Bytes, Field

from schemas.envelope import Event, EventData


class Header(EventData):
    """A header of the record, unchanged."""

    name: str
    value: Base64Bytes


class DeadLetter(EventData):
    """A record that was set aside. Its bytes are base64, so that undecodable bytes are kept
    unchanged.

    Attributes:
        topic, partition, offset: where the record lies.
        processor: name of the processor that could not use it.
        error_type: class of the error.
        error_message: text of the error.
        attempts: how often the record was tried, >= 1.
    """

    topic: str
    partition: int = Field(ge=0)
    offset: int = Field(ge=0)
    key: Base64Bytes | None = None
    value: Base64Bytes | None = None
    headers: list[Header] = []
    processor: str
    error_type: str
    error_message: str
    attempts: int = Field(ge=1)


class DeadLetterEvent(Event[DeadLetter]):
    """A record was set aside. Key: source topic."""

    type: Literal["dead-letter"] = "dead-letter"
