"""The view of API keys."""

from collections.abc import Sequence
from typing import ClassVar

from schemas.envelope import AnyEvent
from schemas.keys import ApiKey, KeyEvent
from schemas.topics import KEYS, Topic


class Keys:
    """API keys by id, revoked ones too: the last record of a key counts.

    Attributes:
        all: by id.
    """

    topics: ClassVar[Sequence[Topic]] = (KEYS,)

    def __init__(self) -> None:
        self.all: dict[str, ApiKey] = {}

    def apply(self, event: AnyEvent) -> None:
        """Take in a key, or a change of one."""
        if isinstance(event, KeyEvent):
            self.all[event.payload.id] = event.payload
