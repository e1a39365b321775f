"""Outcomes: what a rollout came to, for each version that it was assigned."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from schemas.decisions import Decision
from schemas.envelope import Event, EventData, Name, UnitInterval
from schemas.rollouts import RolloutState, Split


class RolloutOutcome(EventData):
    """What a rollout came to, told for one logical name that it used.

    One rollout is one piece of evidence about one version, however many calls and decisions it
    made. The version is the one that the rollout was assigned, not the one that answered
    (intention to treat): what a fallback answered in place of a candidate counts as the
    candidate's.

    It is told when the name is first used, when the reward changes, and when the rollout ends. The
    latest of a rollout counts.

    Attributes:
        name: logical name.
        version: version that the rollout was assigned.
        split: use of the rollout.
        begun: when the rollout began.
        state: of the rollout.
        replaced: whether another version answered a call in this one's place, since its server did
            not. It counts as a failure of this version, whatever the other made of it.
        fault: whose failure it was; None where it did not fail, or where nobody knows.
        reward: reward of the rollout as a whole; where only parts of it were rewarded, their mean;
            None while there is none.
        rewarded: when that reward was given.
        corrected: whether another reward, or the same for another reason, was told before.
        criteria: the scores that the reward was made of.
        cost: of all model calls of the rollout, in the unit of the endpoints' prices.
        decisions: those that the policy of this name made, of a held-out rollout.
    """

    name: Name
    version: Name
    split: Split = "train"
    begun: datetime
    state: RolloutState
    replaced: bool = False
    fault: Literal["agent", "endpoint", "limit", "caller"] | None = None
    reward: UnitInterval | None = None
    rewarded: datetime | None = None
    corrected: bool = False
    criteria: dict[str, UnitInterval] = {}
    cost: float = Field(default=0.0, ge=0.0)
    decisions: list[Decision] = []


class OutcomeEvent(Event[RolloutOutcome]):
    """A rollout came to something. Key: logical name."""

    type: Literal["outcome"] = "outcome"
    rollout_id: Name
