"""The inspection of topics that only views read."""

from collections.abc import Collection
from typing import ClassVar

from schemas.envelope import AnyEvent
from schemas.topics import (
    AUDIT,
    COMMANDS,
    EXAMPLES,
    GATES,
    KEYS,
    LIGHTNING,
    TRAININGS,
    USAGE,
    Topic,
)
from streams.processing.processor import Outcome, Processor
from streams.storage.records import Record


class Inspection(Processor[None]):
    """Reads the topics that no other processor reads.

    A record that cannot be read becomes a dead letter with its reason, as on every other topic.
    Views only skip it: several processes follow each of these topics, and a dead letter is written
    once. A record that can be read has no effect here.
    """

    def handle(self, state: None, event: AnyEvent, source: Record) -> Outcome[None]:  # noqa: ARG002
        """Do nothing: that the event was decoded is all there is to know."""
        return Outcome()

    def encode_state(self, state: None) -> bytes:  # noqa: ARG002 - there is no state
        """Return a placeholder."""
        return b"null"

    def decode_state(self, value: bytes) -> None:  # noqa: ARG002 - there is no state
        """Return nothing."""
        return


class ControlInspection(Inspection):
    """Reads what people and gateways write about keys, use, changes and Agent Lightning's calls."""

    name = "inspection-of-control"
    topics: ClassVar[tuple[Topic, ...]] = (KEYS, USAGE, AUDIT, LIGHTNING)


class NamesInspection(Inspection):
    """Reads topics by logical name: the status of gates, orders to trainers and their runs, and
    examples of names that nothing learns.

    Args:
        learned: logical names that something learns. Whatever learns a name reads its examples.
    """

    name = "inspection-of-names"
    topics: ClassVar[tuple[Topic, ...]] = (COMMANDS, EXAMPLES, GATES, TRAININGS)

    def __init__(self, learned: Collection[str] = ()) -> None:
        self._learned = frozenset(learned)

    def concerns(self, source: Record) -> bool:
        """Return whether nothing else reads a record."""
        return source.topic != EXAMPLES.name or self.state_key(source) not in self._learned


def inspections(learned: Collection[str]) -> list[Inspection]:
    """Return the inspections of all records that no other processor reads.

    Args:
        learned: logical names that something learns.
    """
    return [ControlInspection(), NamesInspection(learned)]
