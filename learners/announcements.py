"""When an online learner announces a version: when its examples have grown by a share, not after
every example.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class AnnouncementConfig(BaseModel):
    """When a version is announced.

    Attributes:
        first: the first one after so many examples.
        growth: the next one when the examples and corrections are so much more, as a share. With
            0.2 there are 39 versions in 10,000 examples, and 13 more in 100,000.
        shift: also when corrections moved the expected rewards of what they correct by so much in
            all; the next time by twice as much, until examples have grown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: int = Field(default=10, ge=1)
    growth: Annotated[float, Field(ge=0.0, le=10.0)] = 0.2
    shift: Annotated[float, Field(gt=0.0)] = 0.1


@dataclass
class Announcements:
    """What happened since the last announcement. It is part of a learner's state.

    Attributes:
        changes: examples and corrections so far.
        announced: how many there were at the last announcement.
        moved: how far corrections moved expected rewards since then.
        doublings: how many announcements in a row were made for corrections.
        due: whether the last change makes a version due.
    """

    changes: int = 0
    announced: int = 0
    moved: float = 0.0
    doublings: int = 0
    due: bool = False

    def note(self, config: AnnouncementConfig, moved: float = 0.0) -> None:
        """Note an example, or a correction that moved the expected reward by `moved`."""
        self.changes += 1
        self.moved += moved
        grown = self.changes - self.announced >= max(1.0, config.growth * self.announced)
        if not self.announced:
            grown = self.changes >= config.first
        # Each announcement for corrections alone takes twice as much: else many small ones would
        # announce for ever.
        shifted = self.announced > 0 and self.moved >= config.shift * 2.0**self.doublings
        self.due = grown or shifted
        if self.due:
            self.doublings = 0 if grown else self.doublings + 1
            self.announced, self.moved = self.changes, 0.0
