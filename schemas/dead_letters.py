"""Dead letters: records that could not be read or processed, whole, with the reason."""

from typing import Literal

from pydantic import Base64Bytes, Field

from schemas.envelope import Event, EventData


class Header(EventData):
    """A record header as it was."""

    name: str
    value: Base64Bytes


class DeadLetter(EventData):
    """A record set aside. Bytes are base64, so that what could not be decoded is kept as it was.

    Attributes:
        topic, partition, offset: where the record lies.
        processor: which one could not use it.
        error_type: class of the error, error_message: its text, attempts: how often it was tried.
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
