"""The gate: decides whether a checkpoint may serve, during its trial, and after its promotion."""

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
        most_evidence: most held-out decisions that are kept; the newest are.
        confidence: of each verdict, one-sided: of the lower bound, of a trial, and of a drop; in
            (0.5, 1).
        tolerance: a candidate passes if it is surely worse than the champion by no more than this,
            in units of reward.
        canary_share: share of new rollouts that go to a candidate on trial; 0 promotes without a
            trial.
        canary_pairs: a trial without a verdict ends after this many pairs of rewards; the candidate
            is rolled back.
        drop: a promoted version is rolled back if it surely earns less, by more than this, than the
            version it replaced.
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
        """Probability that a verdict is wrong, in (0, 0.5)."""
        return 1.0 - self.confidence


@dataclass(frozen=True)
class Verdict:
    """The verdict of the gate.

    Attributes:
        passed: whether the candidate may go on to its trial.
        reason: the verdict in words, with its numbers.
        evidence: number of held-out decisions.
        difference: estimated mean reward of the candidate minus that of the champion.
        lower_bound: one-sided confidence bound of the difference, valid at every length of the log.
        value: estimated mean reward of the candidate.
    """

    passed: bool
    reason: str
    evidence: int
    difference: float = 0.0
    lower_bound: float = 0.0
    value: float = 0.0

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
    candidate: Policy, champion: Policy, evidence: Sequence[Logged], config: GateConfig
) -> Verdict:
    """Compare two policies on the same held-out decisions, off-policy.

    The bound is by betting (`learners.evaluation.difference_bound`). The estimate is by inverse
    propensity: each decision contributes (w_candidate - w_champion) * (reward - mean reward), where
    w is the policy's probability of the logged choice divided by its logged propensity. The
    difference of the weights has mean zero, so a constant may be subtracted from the reward.
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
    numbers = f"difference {difference:+.3f}, {config.confidence:.0%} lower bound {bound:+.3f}"
    return Verdict(
        passed,
        f"{numbers} {relation} -{config.tolerance}, from {count} held-out decisions",
        count,
        difference,
        bound,
        float(rewards.mean() + (new * above).mean()),
    )


class Tally(BaseModel):
    """The rewards of one version, counted and summed."""

    count: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float:
        """Mean reward; 0 if there is none."""
        return self.total / self.count if self.count else 0.0

    def take(self, reward: float) -> None:
        """Add a reward."""
        self.count += 1
        self.total += reward

    def surely_above(self, error: float) -> float:
        """Return a lower bound of the expected reward, by Hoeffding's inequality (JASA, 1963).

        The bound is wrong with probability at most `error`. Without rewards it is 0.
        """
        return self.mean - sqrt(log(1.0 / error) / (2 * self.count)) if self.count else 0.0


class Trial(BaseModel):
    """A canary: a candidate and the champion serve at the same time, and their rewards are
    compared.

    Each reward of the candidate is paired with the mean of the champion's rewards since the last
    pair. The differences lie in [-1, 1]; their mean is the difference of the mean rewards. Two
    wagers run on them, one for each verdict. Both may be asked at any time.

    Attributes:
        candidate, champion: their versions.
        no_worse: won when the candidate is surely worse by no more than the tolerance.
        worse: won when the candidate is surely worse by more than the tolerance.
        fresh: rewards of the champion since the last pair.
        waiting: rewards of the candidate that have no partner yet.
    """

    candidate: str
    champion: str
    no_worse: Wager
    worse: Wager
    fresh: Tally = Tally()
    waiting: list[float] = []

    @classmethod
    def of(cls, candidate: str, champion: str, config: GateConfig) -> "Trial":
        """Return a trial without rewards."""
        no_worse = Wager(mean=-config.tolerance, least=-1.0)
        return cls(
            candidate=candidate,
            champion=champion,
            no_worse=no_worse,
            worse=Wager(mean=config.tolerance, least=-1.0),
        )

    def take(self, version: str, reward: float) -> None:
        """Add a reward in [0, 1] of one of the two versions."""
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
        """Return whether the candidate passes, and why; None if there is no verdict yet."""
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
    """The watch over a promoted version: has its reward dropped below that of the version it
    replaced?

    Attributes:
        replaced: the version before.
        drop: won when the mean reward is surely too low.
    """

    version: str
    replaced: str
    drop: Wager

    @classmethod
    def of(cls, version: str, replaced: str, before: Tally, config: GateConfig) -> "Watch | None":
        """Return the watch over a version; None if the replaced version has too few rewards to tell
        a drop.
        """
        # Half of the error is spent on this bound, half on the wager, so that both hold together.
        bar = before.surely_above(config.error / 2) - config.drop
        if bar <= 0.0:
            return None
        return cls(version=version, replaced=replaced, drop=Wager(mean=-bar, least=-1.0))

    def dropped(self, reward: float, config: GateConfig) -> bool:
        """Add a reward in [0, 1]; return whether the version surely earns too little."""
        # A wager shows that a mean is high. Negated rewards make it show that rewards are low.
        self.drop.take(-reward)
        return self.drop.won(config.error / 2)
