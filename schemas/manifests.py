"""Manifests: exactly which lessons a batch learner is to learn from, so that a training run can be repeated."""

from hashlib import sha256

from pydantic import Field

from schemas.checkpoints import OffsetRange
from schemas.envelope import Model, Name


class Manifest(Model):
    """The lessons of one training run. The same manifest gives the same artifact.

    Attributes:
        target: logical name of what learns.
        head: which lessons are meant.
        ranges: where on the topic of examples they lie; what is of another target or head there is passed over.
        lessons: how many there are.
        number: 1 for the target's first batch, one more for each later one.
    """

    target: Name
    head: Name
    ranges: list[OffsetRange] = Field(min_length=1)
    lessons: int = Field(ge=1)
    number: int = Field(ge=1)

    @property
    def sha256(self) -> str:
        """Its name: the hash of what it says, in hexadecimal."""
        return sha256(self.model_dump_json().encode()).hexdigest()
