"""Off-policy evaluation: the reward a policy would have had on decisions that another policy made.

Point estimates: inverse propensity scoring (Horvitz & Thompson, 1952), its self-normalised form
(Swaminathan & Joachims, NIPS 2015), the direct method, the doubly robust estimator (Dudík, Langford
& Li, ICML 2011), and its switching form (Wang, Agarwal & Dudík, ICML 2017).

Bounds: confidence sequences by betting (Waudby-Smith & Ramdas, JRSS B 2024; for weighted rewards
Waudby-Smith, Wu, Ramdas, Karampatziakis & Mineiro, 2022). They hold at every number of decisions at
once, so one may look at any time. They need no upper bound on the weights.

Rewards are in [0, 1]. The evaluated policy must not have learned from these decisions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from math import log as ln
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.bandit.features import Features, features
from learners.bandit.regressor import BlockBayesianRegressor, RegressorConfig
from learners.betting import FRACTIONS
from learners.contract import Policy, distribution
from learners.policies import UNIFORM_VERSION, UniformPolicy
from schemas.decisions import Decision

Floats = NDArray[np.float64]

# 50 halvings bring the bound to 1e-15 of the range, the precision of a float.
BISECTIONS = 50
FOLDS = 5
SWITCH_ABOVE = 20.0
MODEL = RegressorConfig(prior_variance=0.5, forgetting=(1e-5,), dense=0)
"""The regression of the direct method. It has no covariances, because each fold fits it once more.
"""


@dataclass(frozen=True)
class Logged:
    """A logged decision with its reward.

    Attributes:
        reward: in [0, 1].
        rollout: its rollout, which is the unit of evidence: decisions of one rollout count as one.
            None where each decision stands for itself.
    """

    decision: Decision
    reward: float
    rollout: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.reward <= 1.0:
            raise ValueError(f"reward {self.reward} is not in [0, 1]")


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
class Comparison:
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
    rewards, rollouts = _rewards(log), _Rollouts(log)
    chosen, distributions = _chances(policy, log)
    weights = chosen / _propensities(log)
    model = _ModelledRewards(log)
    direct = model.values(distributions)
    correction = weights * (rewards - model.chosen)
    weighted, share = rollouts.means(weights * rewards), rollouts.means(weights)
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
            min(1.0, 1.0 - lower_bound(rollouts.means(weights * (1.0 - rewards)), 0.0, tail)),
        ),
        diagnostics=_diagnostics(share, distributions, log),
    )


def compare(
    policy: Policy, against: Policy, log: Sequence[Logged], confidence: float = 0.95
) -> Comparison:
    """Return how much more reward a policy would have had than another on the same logged
    decisions.

    Raises:
        ValueError: there are fewer than two decisions.
    """
    if len(log) < 2:
        raise ValueError(f"a comparison needs at least two decisions, got {len(log)}")
    rewards = _rewards(log)
    (new, new_all), (old, old_all) = _chances(policy, log), _chances(against, log)
    new, old = new / _propensities(log), old / _propensities(log)
    model = _ModelledRewards(log)
    modelled = model.values(new_all) - model.values(old_all)
    tail, spread = (1.0 - confidence) / 2, _spread(policy, against, log)
    return Comparison(
        float(_Rollouts(log).means(modelled + (new - old) * (rewards - model.chosen)).mean()),
        Interval(
            lower_bound(*_bets(new, old, spread, log), tail),
            -lower_bound(*_bets(old, new, (-spread[1], -spread[0]), log), tail),
        ),
    )


@dataclass(frozen=True)
class Arm:
    """Mean reward of always choosing one candidate, over the decisions that offered it.

    Attributes:
        offered: decisions that offered it.
        chosen: decisions that chose it.
        value: self-normalised estimate of the mean reward, in [0, 1]; None if it was never chosen.
    """

    offered: int
    chosen: int
    value: float | None


def arms(log: Sequence[Logged]) -> dict[str, Arm]:
    """Return the value of each candidate by its id, or by its text if it has no id."""
    found: dict[str, list[tuple[Logged, bool]]] = {}
    for item in log:
        for index, candidate in enumerate(item.decision.candidates):
            name = candidate.id or candidate.text
            found.setdefault(name, []).append((item, index == item.decision.choice))
    return {name: _arm(of) for name, of in found.items()}


def _arm(of: Sequence[tuple[Logged, bool]]) -> Arm:
    weights = [1.0 / item.decision.propensity for item, chosen in of if chosen]
    rewards = [item.reward for item, chosen in of if chosen]
    total = sum(weights)
    value = (
        sum(w * reward for w, reward in zip(weights, rewards, strict=True)) / total
        if total
        else None
    )
    return Arm(len(of), len(weights), value)


def regrets(log: Sequence[Logged]) -> Floats:
    """Return how much more the best candidate of each decision would have earned, by the direct
    method.

    The rewards of a decision are modelled from the other decisions. The greatest of several noisy
    estimates is too high on average, so regrets are rather too great than too small.

    Returns:
        Shape (n,), in [0, 1].
    """
    return _ModelledRewards(log).regrets


@dataclass(frozen=True)
class Gain:
    """How much more reward a policy would have had than another.

    Attributes:
        difference: estimate of the mean reward of the first minus that of the second.
        bound: one-sided lower bound of the difference, valid at every length of the log.
        value: estimated mean reward of the first.
        deviation: standard deviation of one rollout's estimate of the difference.
    """

    difference: float
    bound: float
    value: float
    deviation: float


def compare_on(policy: Policy, against: Policy, log: Sequence[Logged], error: float) -> Gain:
    """Return how much more reward a policy would have had than another, without a regression.

    Args:
        error: probability that the bound is wrong, in (0, 1).
    """
    rollouts, rewards = _Rollouts(log), _rewards(log)
    new, old = weights_of(policy, log), weights_of(against, log)
    above = rewards - rollouts.means(rewards).mean()
    values, least = _bets(new, old, _spread(policy, against, log), log)
    return Gain(
        float(rollouts.means((new - old) * above).mean()),
        lower_bound(values, least, error),
        float(rollouts.means(rewards).mean() + rollouts.means(new * above).mean()),
        float(values.std()),
    )


def gain_is_sure(
    policy: Policy, against: Policy, log: Sequence[Logged], error: float, tolerance: float = 0.0
) -> bool:
    """Return whether the mean reward of a policy is above that of another minus a tolerance.

    The answer is wrong with probability at most `error`, however often it is asked as the log
    grows.
    """
    return compare_on(policy, against, log, error).bound > -tolerance


def weights_of(policy: Policy, log: Sequence[Logged]) -> Floats:
    """Return the policy's probability of each logged choice over its propensity, shape (n,)."""
    return _chances(policy, log)[0] / _propensities(log)


def lower_bound(values: Floats, least: Floats | float, error: float) -> float:
    """Return a lower bound of the mean of `values`.

    With probability at least 1 - error the bounds of all prefixes hold. A mean is ruled out if a
    gambler who bets against it has won at any time (`learners.betting`).

    Args:
        values: shape (n,), in order, each with the same mean given those before it.
        least: no value is below it; one number for all, or shape (n,), each known before its value.
        error: in (0, 1).

    Returns:
        The bound, at least the greatest of `least`.
    """
    low = float(np.max(least))
    high = max(float(np.max(values)), low + 1.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _ruled_out(values, least, middle, error):
            low = middle
        else:
            high = middle
    return low


def decisions_needed(
    difference: float, deviation: float, error: float = 0.05, power: float = 0.8
) -> int:
    """Return about how many decisions a bound by betting needs to tell a difference from zero.

    At best the logarithm of the stake grows by difference^2 / (2 deviation^2) with each decision.
    It must reach log(1/error), plus the cost of the mixture over `FRACTIONS`. Greater power needs
    more.

    Args:
        difference: of mean rewards, > 0.
        deviation: standard deviation of the weighted difference of one decision, > 0; see
            `difference_deviation`.
        error: of the one-sided bound, in (0, 1).
        power: probability to tell the difference, in (0, 1).

    Raises:
        ValueError: the difference or the deviation is not positive.
    """
    # Imported here because it takes a third of a second.
    from scipy.special import ndtri

    if difference <= 0 or deviation <= 0:
        raise ValueError(
            f"difference and deviation must be positive, got {difference} and {deviation}"
        )
    growth = difference / deviation
    # After n decisions the logarithm of the stake is about normal, with mean n growth^2 / 2 and
    # variance n growth^2. Solve for the n at which it exceeds the target with this power.
    target = ln(1.0 / error) + ln(len(FRACTIONS)) / 2
    root = (float(ndtri(power)) + (float(ndtri(power)) ** 2 + 2.0 * target) ** 0.5) / growth
    needed: int = ceil(root * root)
    return needed


def difference_deviation(policy: Policy, against: Policy, log: Sequence[Logged]) -> float:
    """Return the deviation of one decision's estimate of the difference of two policies."""
    new, old = weights_of(policy, log), weights_of(against, log)
    return float(_bets(new, old, _spread(policy, against, log), log)[0].std())


def rollouts_of(log: Sequence[Logged]) -> int:
    """Return how many rollouts a log has, which is how much evidence it is."""
    named = {item.rollout for item in log if item.rollout is not None}
    return len(named) + sum(item.rollout is None for item in log)


class _Rollouts:
    """The rollouts of a log, in the order in which they first appear."""

    def __init__(self, log: Sequence[Logged]) -> None:
        numbers: dict[str | int, int] = {}
        keys = (item.rollout if item.rollout is not None else n for n, item in enumerate(log))
        self.of = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
        self._sizes = np.bincount(self.of)

    def means(self, values: Floats) -> Floats:
        """Return the mean of the decisions' values by rollout, shape (rollouts,)."""
        means: Floats = np.bincount(self.of, weights=values) / self._sizes
        return means


def _spread(policy: Policy, against: Policy, log: Sequence[Logged]) -> tuple[float, float]:
    """Return the least and the greatest possible difference of two policies' weights, where the
    uniform baseline chose among at most K candidates.

    A weight lies in [0, K]. That of the baseline itself is 1.
    """
    most = float(max((len(item.decision.candidates) for item in log), default=1))
    (new_least, new_most), (old_least, old_most) = (
        (1.0, 1.0) if isinstance(one, UniformPolicy) else (0.0, most) for one in (policy, against)
    )
    return new_least - old_most, new_most - old_least


def _bets(
    new: Floats, old: Floats, spread: tuple[float, float], log: Sequence[Logged]
) -> tuple[Floats, Floats]:
    """Return each rollout's estimate of the difference of two policies, and its least possible
    value; both of shape (rollouts,).

    Every estimate has the difference as its mean. With weights w and v and reward r it is w r + v
    (1 - r) - 1, which is at least -1 for all weights. If the uniform baseline chose, the weights
    are bounded. Then the estimate is (w - v) (r - m), where m is the mean of the earlier rollouts'
    rewards; it varies far less. The greater its least possible value, the more may be bet.

    Args:
        spread: least and greatest w - v where the uniform baseline chose.
    """
    rewards, rollouts = _rewards(log), _Rollouts(log)
    earned = rollouts.means(rewards)
    before = (0.5 + np.concatenate([[0.0], np.cumsum(earned)[:-1]])) / np.arange(1, len(earned) + 1)
    by_uniform = np.array([item.decision.policy_version == UNIFORM_VERSION for item in log])
    uniform = rollouts.means(by_uniform.astype(float)) == 1.0
    values = np.where(
        uniform[rollouts.of],
        (new - old) * (rewards - before[rollouts.of]),
        new * rewards + old * (1.0 - rewards) - 1.0,
    )
    low, high = spread
    # r - m lies in [-m, 1 - m], and a product is least at a corner.
    least = np.where(uniform, np.minimum(low * (1.0 - before), -high * before), -1.0)
    return rollouts.means(values), least


def _ruled_out(values: Floats, least: Floats | float, mean: float, error: float) -> bool:
    """Return whether the stake would have reached 1/error at any time if `mean` were the mean."""
    if mean <= np.max(least):
        return True
    odds = (values - mean) / (mean - least)
    stakes = np.cumsum(np.log1p(np.outer(FRACTIONS, odds)), axis=1)
    most = stakes.max(axis=0)
    mixed = most + np.log(np.exp(stakes - most).mean(axis=0))
    return bool(mixed.max() >= ln(1.0 / error))


class _ModelledRewards:
    """Rewards by a regression. That of a decision has not seen the decision (cross-fitting).

    Attributes:
        chosen: shape (n,), modelled rewards of the chosen candidates.
        regrets: shape (n,), modelled reward of the best candidate minus `chosen`.
    """

    def __init__(self, log: Sequence[Logged]) -> None:
        slates = [features(item.decision.context, item.decision.candidates) for item in log]
        models = [_fit(slates, log, fold) for fold in range(FOLDS)]
        self._all = [
            np.clip(models[number % FOLDS].predict_many(candidates), 0.0, 1.0)
            for number, candidates in enumerate(slates)
        ]
        self.chosen: Floats = np.array(
            [modelled[item.decision.choice] for modelled, item in zip(self._all, log, strict=True)]
        )
        self.regrets: Floats = np.array([np.max(modelled) for modelled in self._all]) - self.chosen

    def values(self, distributions: Sequence[Floats]) -> Floats:
        """Return the expected reward of each decision, shape (n,)."""
        return np.array([float(p @ q) for p, q in zip(distributions, self._all, strict=True)])


def _fit(
    slates: list[list[Features]], log: Sequence[Logged], left_out: int
) -> BlockBayesianRegressor:
    model = BlockBayesianRegressor(MODEL)
    for number, (candidates, item) in enumerate(zip(slates, log, strict=True)):
        if number % FOLDS != left_out:
            model.learn_one(candidates[item.decision.choice], item.reward)
    return model


def _chances(policy: Policy, log: Sequence[Logged]) -> tuple[Floats, list[Floats]]:
    """Return the policy's probability of each logged choice, shape (n,), and its distributions."""
    distributions = [np.array(distribution(policy, item.decision)) for item in log]
    chosen = [p[item.decision.choice] for p, item in zip(distributions, log, strict=True)]
    return np.array(chosen), distributions


def _rewards(log: Sequence[Logged]) -> Floats:
    return np.array([item.reward for item in log])


def _propensities(log: Sequence[Logged]) -> Floats:
    return np.array([item.decision.propensity for item in log])


def _diagnostics(
    weights: Floats, distributions: Sequence[Floats], log: Sequence[Logged]
) -> Diagnostics:
    unsupported = [
        float(p[np.array(item.decision.probabilities) < 0.001].sum())
        for p, item in zip(distributions, log, strict=True)
    ]
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
