"""Gates: what the gate of a logical name waits for now."""

from typing import Literal

from pydantic import Field

from schemas.envelope import Event, EventData, Name, UnitInterval


class ArmSummary(EventData):
    """The rollouts of one version in a comparison.

    Attributes:
        rollouts: that are old enough to count.
        rewarded, failed, missing: of these; missing are those without a reward that did not fail.
        mean: mean worth of the rewarded ones; 0 if there are none.
    """

    version: Name
    rollouts: int = Field(ge=0)
    rewarded: int = Field(ge=0)
    failed: int = Field(ge=0)
    missing: int = Field(ge=0)
    mean: UnitInterval


class GateStatus(EventData):
    """What the gate of a logical name does.

    Attributes:
        phase: `waiting` for a candidate, or for evidence about one; `trial` of a candidate; `watch`
            over what was promoted; `held` by a person.
        version: the version in question; None where there is none.
        evidence: held-out rollouts that can be used, or pairs of a comparison.
        needed: how many it takes by the power calculator, at the difference seen so far; None where
            that cannot be said.
        per_hour: how many come in an hour, by the latest rollouts; None while that is not known.
        arms: the compared versions, the newer first.
        maturity_s: age at which a rollout counts, in seconds.
        text: all of this in a sentence.
    """

    name: Name
    phase: Literal["waiting", "trial", "watch", "held"]
    version: str | None = None
    evidence: int = Field(default=0, ge=0)
    needed: int | None = Field(default=None, ge=0)
    per_hour: float | None = Field(default=None, ge=0.0)
    arms: list[ArmSummary] = []
    maturity_s: float = Field(default=0.0, ge=0.0)
    text: str


class GateEvent(Event[GateStatus]):
    """What a gate waits for has changed. Key: logical name."""

    type: Literal["gate"] = "gate"
