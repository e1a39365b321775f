"""Off-policy evaluation: what a policy would have earned on decisions that another one made.

Point estimates: inverse propensity scoring (Horvitz & Thompson, 1952), its self-normalised form
    (Swaminathan &
Joachims, NIPS 2015), the direct method, the doubly robust estimator (Dudík, Langford & Li, ICML
2011) and its switching form (Wang, Agarwal & Dudík, ICML 2017). Bounds: confidence sequences by
betting (Waudby-Smith & Ramdas, JRSS B 2024; for weighted rewards Waudby-Smith, Wu, Ramdas,
Karampatziakis & Mineiro, 2022). They hold at every number of decisions at once, so one may look as
often as one likes, and they need no bound on the weights from above.

Rewards are in [0, 1]. The decisions must not have taught the policy that is evaluated.
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
from learners.policies import UNIFORM_VERSION
from schemas.decisions import Decision

Floats = NDArray[np.float64]

BISECTIONS = 50
FOLDS = 5
SWITCH_ABOVE = 20.0
MODEL = RegressorConfig(prior_variance=0.5, forgetting=(1e-5,), dense=0)
"""The regression of the direct method: without covariances, because it is fitted once for each
fold.
"""


@dataclass(frozen=True)
class Logged:
    """A logged decision with its reward.

    Attributes:
        reward: in [0, 1].
    """

    decision: Decision
    reward: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.reward <= 1.0:
            raise ValueError(f"reward {self.reward} is not in [0, 1]")


@dataclass(frozen=True)
class Interval:
    """Where a value is, with the stated confidence, however often one looks."""

    low: float
    high: float


@dataclass(frozen=True)
class Diagnostics:
    """Whether the log can say anything of the policy.

    Attributes:
        decisions: how many there are.
        effective: effective sample size, (sum of weights)^2 / sum of squared weights (Kish, 1965).
        largest_weight: of one decision.
        mean_weight: 1 in expectation when the propensities are true.
        mean_weight_error: its standard error; a mean weight many of them from 1 says that the
            propensities are wrong.
        unsupported: share of the policy's own choices, on average, on candidates with a propensity
            below 0.001.
    """

    decisions: int
    effective: float
    largest_weight: float
    mean_weight: float
    mean_weight_error: float
    unsupported: float


@dataclass(frozen=True)
class Evaluation:
    """What a policy would have earned.

    Attributes:
        logged: what was earned.
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
    """One policy beside another on the same decisions.

    Attributes:
        difference: doubly robust estimate of the first one's mean reward minus the second one's.
        interval: confidence sequence of that difference.
    """

    difference: float
    interval: Interval


def evaluate(policy: Policy, log: Sequence[Logged], confidence: float = 0.95) -> Evaluation:
    """Return what a policy would have earned on logged decisions.

    Args:
        log: at least two decisions, in the order they were made.
        confidence: of the interval, two-sided, in (0, 1).

    Raises:
        ValueError: there are fewer than two decisions.
    """
    if len(log) < 2:
        raise ValueError(f"{len(log)} decisions; an evaluation needs at least two")
    rewards = _rewards(log)
    chosen, distributions = _chances(policy, log)
    weights = chosen / _propensities(log)
    model = _ModelledRewards(log)
    direct = model.values(distributions)
    correction = weights * (rewards - model.chosen)
    tail = (1.0 - confidence) / 2
    return Evaluation(
        logged=float(rewards.mean()),
        ips=float((weights * rewards).mean()),
        snips=float((weights * rewards).sum() / weights.sum())
        if weights.sum() > 0
        else float("nan"),
        direct=float(direct.mean()),
        doubly_robust=float((direct + correction).mean()),
        switch=float((direct + np.where(weights <= SWITCH_ABOVE, correction, 0.0)).mean()),
        interval=Interval(
            max(0.0, lower_bound(weights * rewards, 0.0, tail)),
            min(1.0, 1.0 - lower_bound(weights * (1.0 - rewards), 0.0, tail)),
        ),
        diagnostics=_diagnostics(weights, distributions, log),
    )


def compare(
    policy: Policy, against: Policy, log: Sequence[Logged], confidence: float = 0.95
) -> Comparison:
    """Return how much more a policy would have earned than another, on the same logged decisions.

    Raises:
        ValueError: there are fewer than two decisions.
    """
    if len(log) < 2:
        raise ValueError(f"{len(log)} decisions; a comparison needs at least two")
    rewards = _rewards(log)
    (new, new_all), (old, old_all) = _chances(policy, log), _chances(against, log)
    new, old = new / _propensities(log), old / _propensities(log)
    model = _ModelledRewards(log)
    modelled = model.values(new_all) - model.values(old_all)
    tail = (1.0 - confidence) / 2
    return Comparison(
        float((modelled + (new - old) * (rewards - model.chosen)).mean()),
        Interval(
            lower_bound(*_bets(new, old, log), tail),
            -lower_bound(*_bets(old, new, log), tail),
        ),
    )


@dataclass(frozen=True)
class Arm:
    """What always choosing one candidate would have earned, of those it stands among.

    Attributes:
        offered, chosen: decisions.
        value: self-normalised estimate of the mean reward where it is offered; None where it was
            never chosen.
    """

    offered: int
    chosen: int
    value: float | None


def arms(log: Sequence[Logged]) -> dict[str, Arm]:
    """Return the value of each candidate by its id, or by its text where it has no id."""
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
    """Return how much more the best candidate of each decision would have earned, as the direct
    method tells.

    Each decision's rewards are modelled from the others; the best of several noisy estimates
    flatters, so this is rather too much than too little.

    Returns:
        Shape (n,), in [0, 1].
    """
    return _ModelledRewards(log).regrets


def gain_is_sure(
    policy: Policy, against: Policy, log: Sequence[Logged], error: float, tolerance: float = 0.0
) -> bool:
    """Return whether a policy surely earns more than another, less a tolerance.

    Asked again and again as the log grows, it says so wrongly with probability `error` at most.
    """
    return (
        difference_bound(weights_of(policy, log), weights_of(against, log), log, error) > -tolerance
    )


def weights_of(policy: Policy, log: Sequence[Logged]) -> Floats:
    """Return the policy's probability of each logged choice over its propensity, shape (n,)."""
    return _chances(policy, log)[0] / _propensities(log)


def difference_bound(new: Floats, old: Floats, log: Sequence[Logged], error: float) -> float:
    """Return what a policy surely earns more than another; wrong at some length of the log with
    probability `error`.

    Args:
        new, old: the two policies' weights on the log.
    """
    return lower_bound(*_bets(new, old, log), error)


def lower_bound(values: Floats, least: Floats | float, error: float) -> float:
    """Return a lower bound of the mean of `values` that holds, with probability 1 - error, for all
    their prefixes.

    The means are ruled out against which a gambler has won at some time (`learners.betting`).

    Args:
        values: shape (n,), in order, each with the same mean given those before it.
        least: no value is below it; one for all, or shape (n,), each known before its value.
        error: in (0, 1).

    Returns:
        The bound; at least the greatest of `least`.
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
    """Return about how many decisions a bound by betting needs to tell a difference from nothing.

    The logarithm of the gambler's stake grows by difference^2 / (2 deviation^2) a decision at best,
    and must reach log(1/error), with what the mixture over `FRACTIONS` costs; more for the power
    that is asked for.

    Args:
        difference: of mean rewards, > 0.
        deviation: standard deviation of a decision's weighted difference, > 0; see
            `difference_deviation`.
        error: of the bound, one-sided.
        power: chance to tell the difference, in (0, 1).
    """
    from scipy.special import ndtri  # takes a third of a second to import

    if difference <= 0 or deviation <= 0:
        raise ValueError(
            f"difference and deviation must be positive, got {difference} and {deviation}"
        )
    growth = difference / deviation
    # log of the stake after n decisions is about normal with mean n growth^2/2 and variance n
    # growth^2
    target = ln(1.0 / error) + ln(len(FRACTIONS)) / 2
    root = (float(ndtri(power)) + (float(ndtri(power)) ** 2 + 2.0 * target) ** 0.5) / growth
    needed: int = ceil(root * root)
    return needed


def difference_deviation(policy: Policy, against: Policy, log: Sequence[Logged]) -> float:
    """Return the standard deviation of what one decision says of the difference of two policies."""
    new, old = weights_of(policy, log), weights_of(against, log)
    return float(_bets(new, old, log)[0].std())


def _bets(new: Floats, old: Floats, log: Sequence[Logged]) -> tuple[Floats, Floats]:
    """Return what each decision says of the difference of two policies, and how little it could
    have said.

    All have the difference as their mean. With weights w and v and reward r, it is w r + v (1 - r)
    - 1 >= -1, whatever the weights. Where the uniform baseline chose among K at most, weights are
    known to be at most K, so that a constant can be taken from the reward that its mean before
    suggests, which makes it vary far less: (w - v) (r - mean).
    """
    rewards = _rewards(log)
    before = (0.5 + np.concatenate([[0.0], np.cumsum(rewards)[:-1]])) / np.arange(
        1, len(rewards) + 1
    )
    uniform = np.array([item.decision.policy_version == UNIFORM_VERSION for item in log])
    most = max((len(item.decision.candidates) for item in log), default=1)
    values = np.where(
        uniform, (new - old) * (rewards - before), new * rewards + old * (1.0 - rewards) - 1.0
    )
    least = np.where(uniform, -most * np.maximum(before, 1.0 - before), -1.0)
    return values, np.minimum(least, -1.0)


def _ruled_out(values: Floats, least: Floats | float, mean: float, error: float) -> bool:
    """Return whether the gambler's stake has reached 1/error at some time, had the mean been
    this.
    """
    if mean <= np.max(least):
        return True
    odds = (values - mean) / (mean - least)
    stakes = np.cumsum(np.log1p(np.outer(FRACTIONS, odds)), axis=1)
    most = stakes.max(axis=0)
    mixed = most + np.log(np.exp(stakes - most).mean(axis=0))
    return bool(mixed.max() >= ln(1.0 / error))


class _ModelledRewards:
    """Rewards as a regression tells them, each decision's from a regression that has not seen it
    (cross-fitting).

    Attributes:
        chosen: shape (n,), of the candidates that were chosen.
        regrets: shape (n,), how much better the best candidate is.
    """

    def __init__(self, log: Sequence[Logged]) -> None:
        found = [features(item.decision.context, item.decision.candidates) for item in log]
        models = [_fit(found, log, fold) for fold in range(FOLDS)]
        self._all = [
            np.clip(models[number % FOLDS].predict_many(candidates), 0.0, 1.0)
            for number, candidates in enumerate(found)
        ]
        self.chosen: Floats = np.array(
            [modelled[item.decision.choice] for modelled, item in zip(self._all, log, strict=True)]
        )
        self.regrets: Floats = np.array([np.max(modelled) for modelled in self._all]) - self.chosen

    def values(self, distributions: Sequence[Floats]) -> Floats:
        """Return what each decision would earn in expectation."""
        return np.array([float(p @ q) for p, q in zip(distributions, self._all, strict=True)])


def _fit(
    found: list[list[Features]], log: Sequence[Logged], left_out: int
) -> BlockBayesianRegressor:
    model = BlockBayesianRegressor(MODEL)
    for number, (candidates, item) in enumerate(zip(found, log, strict=True)):
        if number % FOLDS != left_out:
            model.learn_one(candidates[item.decision.choice], item.reward)
    return model


def _chances(policy: Policy, log: Sequence[Logged]) -> tuple[Floats, list[Floats]]:
    """Return the policy's probability of each logged choice, shape (n,), and its whole
    distributions.
    """
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
        effective=float(weights.sum() ** 2 / squared) if squared > 0 else 0.0,
        largest_weight=float(np.max(weights)),
        mean_weight=float(weights.mean()),
        mean_weight_error=float(weights.std() / len(log) ** 0.5),
        unsupported=float(np.mean(unsupported)),
    )
