"""Rollouts: one run of an agent on one task, from created to succeeded or failed."""

from enum import StrEnum
from typing import Literal

from pydantic import Field, JsonValue

from schemas.envelope import Event, EventData, Name


class RolloutState(StrEnum):
    """The state of a rollout."""

    CREATED = "created"
    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


TRANSITIONS: dict[RolloutState, frozenset[RolloutState]] = {
    RolloutState.CREATED: frozenset({RolloutState.STARTED, RolloutState.FAILED}),
    RolloutState.STARTED: frozenset({RolloutState.SUCCEEDED, RolloutState.FAILED}),
    RolloutState.SUCCEEDED: frozenset(),
    RolloutState.FAILED: frozenset(),
}
"""Legal next states."""

TERMINAL = frozenset(state for state, following in TRANSITIONS.items() if not following)

Split = Literal["train", "validation", "test"]
"""Use of a rollout: `train` is learned from, `validation` is evidence of the gate, `test` is
reported.
"""

Fault = Literal["agent", "endpoint", "limit", "caller"]
"""Whose failure a failed rollout was: the agent's own, a model server's (it did not answer, or its
answer was broken), a limit's of ours (rate, budget, deadline), or the caller's, who hung up.
"""


class Task(EventData):
    """The task of a rollout. `expected` is its label, if there is one; agents never see it."""

    id: Name
    input: JsonValue = None
    expected: JsonValue = None


class Recorded(EventData):
    """Counts of a rollout's events."""

    spans: int = Field(default=0, ge=0)
    decisions: int = Field(default=0, ge=0)


class Rollout(EventData):
    """A change of a rollout's state.

    Attributes:
        agent: which agent or workflow ran.
        split_chosen: whether the agent named `split` itself. If not, the gateway drew it, and a
            later event with `split_chosen` replaces it.
        group: experiment arm, for comparisons between rollouts of one task.
        checkpoints: logical name to the version this rollout is pinned to, whether it uses the name
            or not.
        assigned: logical name to the version that serves it in this rollout, told when the rollout
            first uses the name, whatever answers in the end (intention to treat). Versions are
            compared by it. Repeated `started` events are merged.
        output: what the agent produced, on success.
        error: why it failed, on failure.
        fault: whose failure it was. None where the rollout did not fail, or where nobody knows:
            then it counts as the agent's.
        turns: agent turns taken, counted by the agent.
        recorded: number of spans and decisions that the gateway had recorded at the end of the
            rollout; None if it does not know. Topics are read independently, so without these
            numbers nobody could tell that a record is still to come.
    """

    state: RolloutState
    agent: Name = "agent"
    task: Task | None = None
    split: Split = "train"
    split_chosen: bool = False
    group: Name = "default"
    checkpoints: dict[str, str] = {}
    assigned: dict[str, str] = {}
    output: JsonValue = None
    error: str | None = None
    fault: Fault | None = None
    turns: int | None = None
    recorded: Recorded | None = None


class RolloutEvent(Event[Rollout]):
    """A rollout changed state. Key: rollout_id."""

    type: Literal["rollout"] = "rollout"
    rollout_id: Name
