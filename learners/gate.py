"""The gate: judges a candidate on held-out rollouts, before any of its choices are served."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field

from learners.bounds import decisions_needed
from learners.contract import Policy
from learners.gains import compare_on
from learners.logged import Logged, rollouts_of
from learners.policies import UNIFORM_VERSION, UniformPolicy


class GateConfig(BaseModel):
    """Settings of the gate, of trials, and of the watch over what was promoted.

    Attributes:
        least_evidence: held-out rollouts needed for a verdict.
        most_evidence: most held-out rollouts that are kept; the newest are.
        confidence: of verdicts, one-sided, in (0.5, 1). Of all promotions of a name, the expected
            share of wrong ones is at most 1 - confidence (`learners.online_error`); so is that of
            wrong rollbacks after promotions. Each trial finds a candidate worse that is not with at
            most this probability.
        tolerance: a candidate passes if it is surely worse than the champion by no more than this,
            in units of reward.
        failure_tolerance: a candidate passes if its share of failed rollouts is surely greater by
            no more than this.
        missing_tolerance: a candidate passes if its share of rollouts without a reward is surely
            greater by no more than this. Else the rewards that came would not tell of those that
            did not.
        failed_reward: what a failed rollout without a reward counts in comparisons, in [0, 1]. It
            teaches nothing.
        canary_share: share of new rollouts that go to a candidate on trial at first; 0 promotes
            without a trial.
        raised_share: the share that it gets when `raise_after` pairs have shown nothing against it.
            It gets it at once beside the uniform baseline, which nobody has reason to prefer. A
            trial takes the fewer rollouts the nearer the share is to a half.
        raise_after: pairs of rollouts before the share is raised.
        canary_pairs: a trial without a verdict ends after this many pairs of rollouts; the
            candidate is rolled back. A watch ends after as many.
        control_share: share of new rollouts that stays on what was replaced while the promoted
            version is watched; 0 watches nothing.
        drop: a promoted version is rolled back if it surely earns less, by more than this, than the
            version it replaced earns at the same time.
        maturity: age at which rollouts are compared. None learns it: nineteen of twenty rewards
            came by that age lately.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    least_evidence: int = Field(default=12, ge=2)
    most_evidence: int = Field(default=1000, ge=2)
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    tolerance: float = Field(default=0.02, ge=0.0, lt=1.0)
    failure_tolerance: float = Field(default=0.05, ge=0.0, lt=1.0)
    missing_tolerance: float = Field(default=0.1, ge=0.0, lt=1.0)
    failed_reward: float = Field(default=0.0, ge=0.0, le=1.0)
    canary_share: float = Field(default=0.2, ge=0.0, lt=1.0)
    raised_share: float = Field(default=0.5, gt=0.0, lt=1.0)
    raise_after: int = Field(default=20, ge=1)
    canary_pairs: int = Field(default=2000, ge=1)
    control_share: float = Field(default=0.05, ge=0.0, lt=1.0)
    drop: float = Field(default=0.05, ge=0.0, lt=1.0)
    maturity: timedelta | None = Field(default=None, gt=timedelta(0))

    def share_beside(self, champion: str) -> float:
        """Return the share of new rollouts that a candidate gets beside a version at first."""
        return self.raised_share if champion == UNIFORM_VERSION else self.canary_share

    @property
    def error(self) -> float:
        """Probability that a verdict is wrong, in (0, 0.5)."""
        return 1.0 - self.confidence


@dataclass(frozen=True)
class Verdict:
    """The verdict of the gate.

    Attributes:
        passed: whether the candidate may go on to its trial.
        reason: the verdict in words, with its numbers.
        evidence: number of held-out rollouts.
        difference: estimated mean reward of the candidate minus that of the champion.
        lower_bound: one-sided confidence bound of the difference, valid at every length of the log.
        value: estimated mean reward of the candidate.
        likely: whether the estimated difference is above minus the tolerance, and says enough to
            begin a trial.
        needed: held-out rollouts that a verdict is likely to take, by the power calculator at the
            estimated difference; None where it is not above the tolerance.
    """

    passed: bool
    reason: str
    evidence: int
    difference: float = 0.0
    lower_bound: float = 0.0
    value: float = 0.0
    likely: bool = False
    needed: int | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of the verdict, by the names under which the checkpoint records them."""
        return {
            "gate_evidence": float(self.evidence),
            "gate_difference": self.difference,
            "gate_lower_bound": self.lower_bound,
            "gate_value": self.value,
        }


def judge(
    candidate: Policy,
    champion: Policy,
    evidence: Sequence[Logged],
    config: GateConfig,
    error: float | None = None,
) -> Verdict:
    """Compare two policies on the same held-out rollouts, off-policy.

    The unit is the rollout. Its decisions are weighted one by one, and their mean is one value, so
    that ten decisions of a rollout with one reward are no ten pieces of evidence. The value is the
    effect of one decision; what several changed decisions do together shows on trial.

    The bound is by betting (`learners.bounds`). The estimate is by inverse propensity:
    (w_candidate - w_champion) * (reward - mean reward), where w is the policy's probability of the
    logged choice divided by its logged propensity. The difference of the weights has mean zero, so
    a constant may be subtracted from the reward.

    Args:
        error: probability that a worse candidate passes; that of the settings where it is None.
    """
    error = config.error if error is None else error
    count = rollouts_of(evidence)
    if count < config.least_evidence:
        return Verdict(
            False,
            f"{count} held-out rollouts with a reward, {config.least_evidence} needed",
            count,
            needed=config.least_evidence,
        )
    found = compare_on(candidate, champion, evidence, error)
    passed = found.bound > -config.tolerance
    relation = "above" if passed else "not above"
    numbers = f"difference {found.difference:+.3f}, {1 - error:.1%} lower bound {found.bound:+.3f}"
    gain = found.difference + config.tolerance
    # One of several decisions moves the reward so little that any candidate is likely to be within
    # the tolerance. A poor one on trial would hold up better ones for hundreds of rollouts. Beside
    # the baseline it takes few held-out rollouts to be sure instead; beside others, very many.
    several_beside_baseline = isinstance(champion, UniformPolicy) and len(evidence) > count
    return Verdict(
        passed,
        f"{numbers} {relation} -{config.tolerance}, from {count} held-out rollouts",
        count,
        found.difference,
        found.bound,
        found.value,
        gain > 0 and not several_beside_baseline,
        decisions_needed(gain, found.deviation, error) if gain > 0 < found.deviation else None,
    )
