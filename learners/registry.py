"""The checkpoint registry: a fold of the events of checkpoints into their states and lineage."""

from dataclasses import dataclass, field

from schemas.checkpoints import TRANSITIONS, Checkpoint, CheckpointState


class IllegalTransitionError(ValueError):
    """A checkpoint cannot go from its state to the one asked for."""


@dataclass
class Registry:
    """The checkpoints of one logical name by version, each merged from all its events."""

    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)

    def apply(self, change: Checkpoint) -> None:
        """Take in one change of state.

        Raises:
            IllegalTransitionError: see `schemas.checkpoints.TRANSITIONS`; the first state must be
                `candidate`.
        """
        known = self.checkpoints.get(change.version)
        allowed = TRANSITIONS[known.state] if known else {CheckpointState.CANDIDATE}
        if change.state not in allowed:
            before = known.state if known else "unknown"
            raise IllegalTransitionError(
                f"{change.name} {change.version} cannot go from {before} to {change.state};"
                f" from there: {', '.join(sorted(allowed)) or 'nowhere'}"
            )
        self.checkpoints[change.version] = merge(known, change) if known else change

    @property
    def promoted(self) -> Checkpoint | None:
        """The version that serves, if one was promoted."""
        return next(
            (c for c in self.checkpoints.values() if c.state is CheckpointState.PROMOTED), None
        )


def merge(known: Checkpoint, change: Checkpoint) -> Checkpoint:
    """Return a checkpoint after a change of state. Fields that the change does not set stay as they
    were.

    A version that is announced once more as a candidate keeps its state: retractions can bring a
    learner back to weights that were judged before.
    """
    announced_again = change.state is CheckpointState.CANDIDATE
    return change.model_copy(
        update={
            "state": known.state if announced_again else change.state,
            "reason": known.reason if announced_again else change.reason,
            "artifact": change.artifact or known.artifact,
            "endpoint": change.endpoint or known.endpoint,
            "lineage": change.lineage or known.lineage,
            "metrics": known.metrics | change.metrics,
        }
    )
