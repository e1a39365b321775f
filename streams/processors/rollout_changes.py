"""Changes of a rollout's state: which are legal, and the rollout after one."""

from schemas.rollouts import TERMINAL, TRANSITIONS, Rollout, RolloutEvent, RolloutState
from streams.storage.errors import RejectedRecordError


def rollout_after(known: RolloutEvent | None, change: RolloutEvent, assumed: bool) -> RolloutEvent:
    """Return the rollout after a change of state. Fields that the change does not set stay as they
    were.

    Args:
        assumed: whether its end was assumed by the join.

    Raises:
        RejectedRecordError: the change is not legal (see `schemas.rollouts.TRANSITIONS`).
    """
    if known is None:
        return change
    before, after = known.payload.state, change.payload.state
    # The join only guessed that end. What the agent says takes its place.
    if assumed and after in TERMINAL:
        before = RolloutState.STARTED
    repeats = (after is RolloutState.STARTED and before is not RolloutState.CREATED) or (
        after is RolloutState.CREATED and before is RolloutState.STARTED
    )
    if repeats:
        # Every gateway that meets a rollout says that it started, and so does an agent that
        # announces what has begun with a call. What they say more is added.
        return _merge(known, change, before)
    if after not in TRANSITIONS[before]:
        raise RejectedRecordError(f"rollout {change.rollout_id} cannot go from {before} to {after}")
    return _merge(known, change, after)


def _merge(known: RolloutEvent, change: RolloutEvent, state: RolloutState) -> RolloutEvent:
    # A field that has its default value was not said, so it takes nothing away.
    silent = Rollout(state=change.payload.state)
    said = {name: value for name, value in change.payload if value != getattr(silent, name, None)}
    # A split that the gateway drew stands back behind one that the agent named.
    chooser = change if change.payload.split_chosen else known
    payload = known.payload.model_copy(
        update=said
        | {
            "state": state,
            "checkpoints": known.payload.checkpoints | change.payload.checkpoints,
            "assigned": change.payload.assigned | known.payload.assigned,
            "split": chooser.payload.split,
            "split_chosen": chooser.payload.split_chosen,
        }
    )
    return change.model_copy(
        update={"payload": payload, "trace_id": change.trace_id or known.trace_id}
    )
