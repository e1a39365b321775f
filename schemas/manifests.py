"""Manifests: exactly which examples a batch learner is to learn from, so that a training run can be
repeated.
"""

from hashlib import sha256
from typing import Any

from pydantic import Field, model_validator

from schemas.checkpoints import OffsetRange
from schemas.envelope import EventData, Name, with_present_names


class Manifest(EventData):
    """The examples of one training run. The same manifest gives the same artifact.

    Attributes:
        target: logical name of what learns.
        head: which examples are meant.
        ranges: where on the topic of examples they lie; what is of another target or head there is
            passed over.
        examples: how many there are.
        number: 1 for the target's first batch, one more for each later one.
    """

    target: Name
    head: Name
    ranges: list[OffsetRange] = Field(min_length=1)
    examples: int = Field(ge=1)
    number: int = Field(ge=1)

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, document: Any) -> Any:
        return with_present_names(document, lessons="examples")

    @property
    def sha256(self) -> str:
        """Its name: the hash of what it says, in hexadecimal."""
        return sha256(self.model_dump_json().encode()).hexdigest()
