"""Every checkpoint as it stands, folded from the changes of its state."""

from collections.abc import Iterable

from learners.registry import merged
from schemas.checkpoints import Checkpoint, CheckpointEvent
from schemas.envelope import AnyEvent


def folded_checkpoints(events: Iterable[AnyEvent]) -> dict[tuple[str, str], Checkpoint]:
    """Return checkpoints by name and version; what a later change does not say stays."""
    found: dict[tuple[str, str], Checkpoint] = {}
    for event in events:
        if isinstance(event, CheckpointEvent):
            change = event.payload
            place = change.name, change.version
            known = found.get(place)
            found[place] = merged(known, change) if known is not None else change
    return found
