"""Off-policy evaluation: the reward a policy would have had on decisions that another policy made.

Point estimates: inverse propensity scoring (Horvitz & Thompson, 1952), its self-normalised form
(Swaminathan & Joachims, NIPS 2015), the direct method, the doubly robust estimator (Dudík, Langford
& Li, ICML 2011), and its switching form (Wang, Agarwal & Dudík, ICML 2017).

Bounds are by betting (`learners.bounds`): they hold at every number of decisions at once.

Rewards are in [0, 1]. The evaluated policy must not have learned from these decisions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from learners.bounds import lower_bound
from learners.contract import Policy
from learners.gains import bets, chances, weight_spread
from learners.logged import ByRollout, Floats, Logged, propensities_of, rewards_of
from learners.modelled_rewards import ModelledRewards

# Above this weight the model's value alone counts: one such weight would outvote all others.
SWITCH_ABOVE = 20.0


@dataclass(frozen=True)
class Interval:
    """The range of a value, with the stated confidence at every moment."""

    low: float
    high: float


@dataclass(frozen=True)
class Diagnostics:
    """Whether the log can say anything about the policy.

    Attributes:
        decisions: number of decisions.
        rollouts: number of rollouts that made them; what follows counts these.
        effective: effective sample size, (sum of weights)^2 / sum of squared weights (Kish, 1965).
        largest_weight: greatest weight of one rollout.
        mean_weight: its expectation is 1 if the propensities are true.
        mean_weight_error: standard error of `mean_weight`. If the mean is many of these away from
            1, the propensities are wrong.
        unsupported: mean probability that the policy gives to candidates with a propensity below
            0.001, in [0, 1].
    """

    decisions: int
    rollouts: int
    effective: float
    largest_weight: float
    mean_weight: float
    mean_weight_error: float
    unsupported: float


@dataclass(frozen=True)
class Evaluation:
    """The estimated reward of a policy.

    Attributes:
        logged: mean reward of the logged decisions.
        ips, snips, direct, doubly_robust, switch: point estimates of the policy's mean reward.
        interval: confidence sequence of its mean reward.
    """

    logged: float
    ips: float
    snips: float
    direct: float
    doubly_robust: float
    switch: float
    interval: Interval
    diagnostics: Diagnostics


@dataclass(frozen=True)
class PolicyDifference:
    """The difference of two policies on the same decisions.

    Attributes:
        difference: doubly robust estimate of the mean reward of the first minus that of the second.
        interval: confidence sequence of the difference.
    """

    difference: float
    interval: Interval


def evaluate(policy: Policy, log: Sequence[Logged], confidence: float = 0.95) -> Evaluation:
    """Return the estimated reward of a policy on logged decisions.

    Args:
        log: at least two decisions, in the order they were made.
        confidence: of the interval, two-sided, in (0, 1).

    Raises:
        ValueError: there are fewer than two decisions.
    """
    if len(log) < 2:
        raise ValueError(f"an evaluation needs at least two decisions, got {len(log)}")
    rewards, rollouts = rewards_of(log), ByRollout(log)
    chosen, distributions = chances(policy, log)
    weights = chosen / propensities_of(log)
    model = ModelledRewards(log)
    direct = model.values(distributions)
    correction = weights * (rewards - model.chosen)
    weighted, share = rollouts.means(weights * rewards), rollouts.means(weights)
    # Half of the error for each side.
    tail = (1.0 - confidence) / 2
    return Evaluation(
        logged=float(rollouts.means(rewards).mean()),
        ips=float(weighted.mean()),
        snips=float(weighted.sum() / share.sum()) if share.sum() > 0 else float("nan"),
        direct=float(rollouts.means(direct).mean()),
        doubly_robust=float(rollouts.means(direct + correction).mean()),
        switch=float(
            rollouts.means(direct + np.where(weights <= SWITCH_ABOVE, correction, 0.0)).mean()
        ),
        interval=Interval(
            max(0.0, lower_bound(weighted, 0.0, tail)),
            # An upper bound of the reward is a lower bound of what is missing to 1.
            min(1.0, 1.0 - lower_bound(rollouts.means(weights * (1.0 - rewards)), 0.0, tail)),
        ),
        diagnostics=_diagnostics(share, distributions, log),
    )


def compare(
    policy: Policy, against: Policy, log: Sequence[Logged], confidence: float = 0.95
) -> PolicyDifference:
    """Return how much more reward a policy would have had than another on the same logged
    decisions.

    Raises:
        ValueError: there are fewer than two decisions.
    """
    if len(log) < 2:
        raise ValueError(f"a comparison needs at least two decisions, got {len(log)}")
    rewards = rewards_of(log)
    (new, new_all), (old, old_all) = chances(policy, log), chances(against, log)
    new, old = new / propensities_of(log), old / propensities_of(log)
    model = ModelledRewards(log)
    modelled = model.values(new_all) - model.values(old_all)
    tail, spread = (1.0 - confidence) / 2, weight_spread(policy, against, log)
    return PolicyDifference(
        float(ByRollout(log).means(modelled + (new - old) * (rewards - model.chosen)).mean()),
        Interval(
            lower_bound(*bets(new, old, spread, log), tail),
            -lower_bound(*bets(old, new, (-spread[1], -spread[0]), log), tail),
        ),
    )


@dataclass(frozen=True)
class CandidateValue:
    """Mean reward of always choosing one candidate, over the decisions that offered it.

    Attributes:
        offered: decisions that offered it.
        chosen: decisions that chose it.
        value: self-normalised estimate of the mean reward, in [0, 1]; None if it was never chosen.
    """

    offered: int
    chosen: int
    value: float | None


def candidate_values(log: Sequence[Logged]) -> dict[str, CandidateValue]:
    """Return the value of each candidate by its id, or by its text if it has no id."""
    found: dict[str, list[tuple[Logged, bool]]] = {}
    for item in log:
        for index, candidate in enumerate(item.decision.candidates):
            name = candidate.id or candidate.text
            found.setdefault(name, []).append((item, index == item.decision.choice))
    return {name: _value(of) for name, of in found.items()}


def _value(of: Sequence[tuple[Logged, bool]]) -> CandidateValue:
    weights = [1.0 / item.decision.propensity for item, chosen in of if chosen]
    rewards = [item.reward for item, chosen in of if chosen]
    total = sum(weights)
    value = (
        sum(w * reward for w, reward in zip(weights, rewards, strict=True)) / total
        if total
        else None
    )
    return CandidateValue(len(of), len(weights), value)


def _diagnostics(
    weights: Floats, distributions: Sequence[Floats], log: Sequence[Logged]
) -> Diagnostics:
    unsupported = [
        float(p[np.array(item.decision.probabilities) < 0.001].sum())
        for p, item in zip(distributions, log, strict=True)
    ]
    # All weights may be 0: a policy that would make none of the logged choices.
    squared: Any = (weights**2).sum()
    return Diagnostics(
        decisions=len(log),
        rollouts=len(weights),
        effective=float(weights.sum() ** 2 / squared) if squared > 0 else 0.0,
        largest_weight=float(np.max(weights)),
        mean_weight=float(weights.mean()),
        mean_weight_error=float(weights.std() / len(weights) ** 0.5),
        unsupported=float(np.mean(unsupported)),
    )
