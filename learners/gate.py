"""The gate: is a candidate surely no worse than what serves, before it serves, on trial, and
after?
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from learners.betting import Wager
from learners.contract import Policy
from learners.evaluation import Logged, difference_bound, weights_of


class GateConfig(BaseModel):
    """Settings of the gate.

    Attributes:
        least_evidence: held-out decisions needed for a verdict.
        most_evidence: held-out decisions remembered, the newest.
        confidence: one-sided, of each verdict on its own: of the lower bound, of a trial, and of a
            drop.
        tolerance: a candidate passes when it is surely no more than this worse than the champion.
        canary_share: of new rollouts on trial with a candidate that passed; 0 promotes without a
            trial.
        canary_pairs: a trial that has not convinced after so many rewards of the candidate is given
            up.
        drop: what is promoted is rolled back when it surely earns less, by more than this, than
            what it replaced.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    least_evidence: int = Field(default=12, ge=2)
    most_evidence: int = Field(default=1000, ge=2)
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    tolerance: float = Field(default=0.02, ge=0.0, lt=1.0)
    canary_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    canary_pairs: int = Field(default=2000, ge=1)
    drop: float = Field(default=0.05, ge=0.0, lt=1.0)

    @property
    def error(self) -> float:
        """Chance that a verdict is wrong."""
        return 1.0 - self.confidence


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    Attributes:
        difference: estimated reward of the candidate minus that of the champion.
        lower_bound: one-sided confidence bound of the difference, valid however the log grows.
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


def judge(
    candidate: Policy, champion: Policy, evidence: Sequence[Logged], config: GateConfig
) -> Verdict:
    """Compare two policies on the same held-out decisions, off-policy.

    The bound is by betting (`learners.evaluation.difference_bound`). The estimate is by inverse
    propensity, each decision contributing (w_candidate - w_champion) * (reward - mean reward),
    where w is the policy's probability of the logged choice over its logged propensity; the
    weights' difference has mean zero, so that a constant may be subtracted.
    """
    count = len(evidence)
    if count < config.least_evidence:
        return Verdict(False, f"{count} held-out decisions, {config.least_evidence} needed", count)
    rewards = np.array([item.reward for item in evidence])
    above = rewards - rewards.mean()
    new, old = weights_of(candidate, evidence), weights_of(champion, evidence)
    difference = float(((new - old) * above).mean())
    bound = difference_bound(new, old, evidence, config.error)
    passed = bound > -config.tolerance
    relation = "above" if passed else "not above"
    found = f"difference {difference:+.3f}, {config.confidence:.0%} lower bound {bound:+.3f}"
    return Verdict(
        passed,
        f"{found} {relation} -{config.tolerance}, from {count} held-out decisions",
        count,
        difference,
        bound,
        float(rewards.mean() + (new * above).mean()),
    )


class Tally(BaseModel):
    """Rewards of one version.

    Attributes:
        total: their sum.
    """

    count: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float:
        """Their mean; 0 where there is none."""
        return self.total / self.count if self.count else 0.0

    def take(self, reward: float) -> None:
        """Add a reward."""
        self.count += 1
        self.total += reward

    def surely_above(self, error: float) -> float:
        """Return a lower bound of the expected reward, by Hoeffding's inequality (JASA, 1963)."""
        return self.mean - sqrt(log(1.0 / error) / (2 * self.count)) if self.count else 0.0


class Trial(BaseModel):
    """A canary: a candidate beside the champion, on rewards of rollouts that were drawn for either.

    Each reward of the candidate is paired with the mean of the champion's since the last:
    differences in [-1, 1] whose mean is that of the two versions' rewards. Two wagers run on them,
    one for each verdict; neither minds how often it is asked.

    Attributes:
        candidate, champion: their versions.
        no_worse: won when the candidate is surely no more than the tolerance worse.
        worse: won when it surely is worse.
        fresh: rewards of the champion since the last pair.
        waiting: rewards of the candidate without a partner.
    """

    candidate: str
    champion: str
    no_worse: Wager
    worse: Wager
    fresh: Tally = Tally()
    waiting: list[float] = []

    @classmethod
    def of(cls, candidate: str, champion: str, config: GateConfig) -> "Trial":
        """Return the trial before its first reward."""
        no_worse = Wager(mean=-config.tolerance, least=-1.0)
        return cls(
            candidate=candidate,
            champion=champion,
            no_worse=no_worse,
            worse=Wager(mean=config.tolerance, least=-1.0),
        )

    def take(self, version: str, reward: float) -> None:
        """Take in a reward in [0, 1] of one of the two."""
        if version == self.champion:
            self.fresh.take(reward)
        elif version == self.candidate:
            self.waiting.append(reward)
        if self.waiting and self.fresh.count:
            difference = self.waiting.pop(0) - self.fresh.mean
            self.no_worse.take(difference)
            self.worse.take(-difference)
            self.fresh = Tally()

    def verdict(self, config: GateConfig) -> tuple[bool, str] | None:
        """Return whether the candidate passes, and why; None while that is open."""
        pairs = self.no_worse.values
        if self.worse.won(config.error):
            return (
                False,
                f"on trial it earned less than {self.champion}, surely, after {pairs} pairs of"
                " rewards",
            )
        if self.no_worse.won(config.error):
            return (
                True,
                f"on trial surely no worse than {self.champion} by {config.tolerance}, after"
                f" {pairs} pairs",
            )
        if pairs >= config.canary_pairs:
            return (
                False,
                f"the trial did not convince within {pairs} pairs of rewards; see `everloop"
                " ope` for how many",
            )
        return None


class Watch(BaseModel):
    """Over what was promoted: has its reward dropped below that of what it replaced?

    Attributes:
        replaced: the version before.
        drop: won when the reward is surely lower.
    """

    version: str
    replaced: str
    drop: Wager

    @classmethod
    def of(cls, version: str, replaced: str, before: Tally, config: GateConfig) -> "Watch | None":
        """Return the watch over a version; None where too little is known of what it replaced to
        tell a drop.
        """
        bar = before.surely_above(config.error / 2) - config.drop
        if bar <= 0.0:
            return None
        return cls(version=version, replaced=replaced, drop=Wager(mean=-bar, least=-1.0))

    def dropped(self, reward: float, config: GateConfig) -> bool:
        """Take in a reward in [0, 1]; return whether it is sure by now that too little is
        earned.
        """
        self.drop.take(-reward)
        return self.drop.won(config.error / 2)
