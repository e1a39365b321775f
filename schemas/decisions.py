"""Decisions: a policy chose one of several candidates, with the probability it had."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.envelope import DEFAULT_TENANT, Event, EventData, Name, UnitInterval

PositiveProbability = Annotated[float, Field(gt=0.0, le=1.0)]
# Sums of floats are not exact; a policy that forgets a candidate is off by far more.
SUM_TOLERANCE = 1e-6


class Candidate(EventData):
    """One of the texts, models or prompts that a decision chooses among.

    Attributes:
        id: who or what proposed it, for credit. Policies read it as its name.
        text: the text that a policy reads.
        numbers: numeric features by name.
        cost: cost of choosing it, if known beforehand, in the unit of the endpoints' prices, >= 0.
    """

    id: str = ""
    text: str = ""
    numbers: dict[str, float] = {}
    cost: float | None = Field(default=None, ge=0.0)


class Decision(EventData):
    """A logged choice, with everything that off-policy evaluation and learners need.

    Attributes:
        policy: logical name of the policy.
        policy_version: checkpoint that decided.
        feature_version: version of the function from text to features.
        tenant: tenant of the rollout.
        context: text that all candidates share.
        candidates: in the order offered; at least one.
        probabilities: one for each candidate, in [0, 1]; they sum to 1.
        choice: index into candidates.
        propensity: `probabilities[choice]`, in (0, 1].
    """

    policy: Name
    policy_version: Name
    feature_version: int = Field(ge=0)
    tenant: Name = DEFAULT_TENANT
    context: str = ""
    candidates: list[Candidate] = Field(min_length=1)
    probabilities: list[UnitInterval]
    choice: int = Field(ge=0)
    propensity: PositiveProbability

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.probabilities) != len(self.candidates):
            raise ValueError(
                f"{len(self.probabilities)} probabilities for {len(self.candidates)} candidates"
            )
        if self.choice >= len(self.candidates):
            raise ValueError(f"choice {self.choice} is none of {len(self.candidates)} candidates")
        if abs(sum(self.probabilities) - 1.0) > SUM_TOLERANCE:
            raise ValueError(f"probabilities sum to {sum(self.probabilities)}, not 1")
        # Compared exactly: both are the same number, and JSON keeps every bit of a float.
        if self.probabilities[self.choice] != self.propensity:
            raise ValueError("propensity must equal the probability of the choice")
        return self


class DecisionEvent(Event[Decision]):
    """A policy chose. Key: rollout_id."""

    type: Literal["decision"] = "decision"
    rollout_id: Name
