"""How much more reward one policy would have had than another, surely.

The bounds are by betting (`learners.bounds`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from learners.bounds import lower_bound
from learners.contract import Policy, distribution
from learners.logged import ByRollout, Floats, Logged, propensities_of, rewards_of
from learners.policies import UNIFORM_VERSION, UniformPolicy


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
    rollouts, rewards = ByRollout(log), rewards_of(log)
    new, old = weights_of(policy, log), weights_of(against, log)
    # The difference of the weights has mean 0. So a constant may be subtracted, and the variance
    # falls.
    above = rewards - rollouts.means(rewards).mean()
    values, least = bets(new, old, weight_spread(policy, against, log), log)
    return Gain(
        float(rollouts.means((new - old) * above).mean()),
        lower_bound(values, least, error),
        float(rollouts.means(rewards).mean() + rollouts.means(new * above).mean()),
        float(values.std()),
    )


def weights_of(policy: Policy, log: Sequence[Logged]) -> Floats:
    """Return the policy's probability of each logged choice over its propensity, shape (n,)."""
    return chances(policy, log)[0] / propensities_of(log)


def chances(policy: Policy, log: Sequence[Logged]) -> tuple[Floats, list[Floats]]:
    """Return the policy's probability of each logged choice, shape (n,), and its distributions."""
    distributions = [np.array(distribution(policy, item.decision)) for item in log]
    chosen = [p[item.decision.choice] for p, item in zip(distributions, log, strict=True)]
    return np.array(chosen), distributions


def difference_deviation(policy: Policy, against: Policy, log: Sequence[Logged]) -> float:
    """Return the deviation of one decision's estimate of the difference of two policies."""
    new, old = weights_of(policy, log), weights_of(against, log)
    return float(bets(new, old, weight_spread(policy, against, log), log)[0].std())


def weight_spread(policy: Policy, against: Policy, log: Sequence[Logged]) -> tuple[float, float]:
    """Return the least and the greatest possible difference of two policies' weights, where the
    uniform baseline chose among at most K candidates.

    A weight lies in [0, K]. That of the baseline itself is 1.
    """
    most = float(max((len(item.decision.candidates) for item in log), default=1))
    (new_least, new_most), (old_least, old_most) = (
        (1.0, 1.0) if isinstance(one, UniformPolicy) else (0.0, most) for one in (policy, against)
    )
    return new_least - old_most, new_most - old_least


def bets(
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
    rewards, rollouts = rewards_of(log), ByRollout(log)
    earned = rollouts.means(rewards)
    # Earlier rewards only: a bet must not know the value that it is laid on. 0.5 stands for a first
    # one.
    before = (0.5 + np.concatenate([[0.0], np.cumsum(earned)[:-1]])) / np.arange(1, len(earned) + 1)
    by_uniform = np.array([item.decision.policy_version == UNIFORM_VERSION for item in log])
    # Only where all of a rollout's decisions were the baseline's are its weights bounded.
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
