"""Manifests: exactly which examples a training run reads, so that the run can be repeated."""

from hashlib import sha256
from typing import Any

from pydantic import Field, model_validator

from schemas.checkpoints import OffsetRange
from schemas.envelope import EventData, Name, with_present_names


class Manifest(EventData):
    """The examples of one training run. The same manifest gives the same artifact.

    Attributes:
        target: logical name of the learner's target.
        head: kind of the examples.
        ranges: offsets on the topic of examples; examples of another target or head are skipped.
        examples: number of examples; retractions lie there too and are not counted.
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
        """SHA-256 of the manifest, in hexadecimal. It names the manifest."""
        return sha256(self.model_dump_json().encode()).hexdigest()
