"""The inspection of topics that only views read."""

from typing import ClassVar

from schemas.envelope import AnyEvent
from schemas.topics import AUDIT, COMMANDS, GATES, KEYS, LIGHTNING, TRAININGS, USAGE, Topic
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


class TrainingInspection(Inspection):
    """Reads the status of gates, orders to trainers and their runs: topics by logical name."""

    name = "inspection-of-training"
    topics: ClassVar[tuple[Topic, ...]] = (COMMANDS, GATES, TRAININGS)


def inspections() -> list[Inspection]:
    """Return the inspections of all topics that no other processor reads."""
    return [ControlInspection(), TrainingInspection()]
