"""The gate of a policy: is it, on held-out tasks, at least as good as the one that serves?"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from pydantic import BaseModel, ConfigDict, Field

from learners.contract import Policy, distribution
from schemas.decisions import Decision


class GateConfig(BaseModel):
    """Settings of the gate.

    Attributes:
        least_evidence: held-out decisions needed for a verdict.
        confidence: one-sided, of the lower bound.
        tolerance: a candidate passes when it is surely no more than this worse than the champion.
        most_evidence: held-out decisions remembered, the newest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    least_evidence: int = Field(default=12, ge=2)
    confidence: float = Field(default=0.9, gt=0.5, lt=1.0)
    tolerance: float = Field(default=0.02, ge=0.0)
    most_evidence: int = Field(default=1000, ge=2)


@dataclass(frozen=True)
class HeldOut:
    """A logged decision on a held-out task, with its reward."""

    decision: Decision
    reward: float


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    Attributes:
        difference: estimated reward of the candidate minus that of the champion.
        lower_bound: one-sided confidence bound of the difference.
        value: estimated reward of the candidate.
        evidence: held-out decisions it rests on.
    """

    passed: bool
    reason: str
    evidence: int
    difference: float = 0.0
    lower_bound: float = 0.0
    value: float = 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers, as they are logged with the checkpoint."""
        return {
            "gate_evidence": float(self.evidence),
            "gate_difference": self.difference,
            "gate_lower_bound": self.lower_bound,
            "gate_value": self.value,
        }


def judge(candidate: Policy, champion: Policy, evidence: Sequence[HeldOut], config: GateConfig) -> Verdict:
    """Compare two policies on the same held-out decisions, off-policy.

    Each decision contributes (w_candidate - w_champion) * (reward - mean reward), where w is the policy's probability
    of the logged choice over its logged propensity (inverse propensity scoring, Horvitz & Thompson 1952; the constant
    subtracted is a control variate: the weights' difference has mean zero). The bound is Student's, one-sided; it is
    valid for one look per candidate and approximate for few decisions.
    """
    count = len(evidence)
    if count < config.least_evidence:
        return Verdict(False, f"{count} held-out decisions, {config.least_evidence} needed", count)
    from scipy.special import stdtrit  # takes a third of a second to import, in every process that reads settings

    mean_reward = sum(item.reward for item in evidence) / count
    differences, values = [], []
    for item in evidence:
        new, old = (_weight(policy, item.decision) for policy in (candidate, champion))
        differences.append((new - old) * (item.reward - mean_reward))
        values.append(new * (item.reward - mean_reward))
    difference = sum(differences) / count
    variance = sum((d - difference) ** 2 for d in differences) / (count - 1)
    bound = difference - float(stdtrit(count - 1, config.confidence)) * sqrt(variance / count)
    passed = bound > -config.tolerance
    relation = "above" if passed else "not above"
    found = f"difference {difference:+.3f}, {config.confidence:.0%} lower bound {bound:+.3f}"
    return Verdict(
        passed,
        f"{found} {relation} -{config.tolerance}",
        count,
        difference,
        bound,
        mean_reward + sum(values) / count,
    )


def _weight(policy: Policy, decision: Decision) -> float:
    return distribution(policy, decision)[decision.choice] / decision.propensity
