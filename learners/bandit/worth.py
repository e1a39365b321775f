"""The worth of a decision: its reward, or its weighted criteria, minus its cost."""

from collections.abc import Mapping
from math import fsum

from learners.bandit.config import BanditConfig
from schemas.examples import BanditExample, Example
from schemas.outcomes import RolloutOutcome


def judged(reward: float, criteria: Mapping[str, float], config: BanditConfig) -> float:
    """Return the weighted mean of the configured criteria that are given; else the reward.

    The result is in [0, 1].
    """
    weights = {name: w for name, w in sorted(config.criteria.items()) if name in criteria}
    if not weights:
        return reward
    weighted = fsum(weight * criteria[name] for name, weight in weights.items())
    return weighted / fsum(weights.values())


def taught(example: Example, config: BanditConfig) -> float:
    """Return the value that the learner learns: the judged reward, minus the measured cost.

    A stated cost is not subtracted here: the policy subtracts it when it chooses.
    """
    stated = _stated(example) is not None
    cost = 0.0 if stated else config.cost_weight * example.cost
    return judged(example.reward, example.criteria, config) - cost


def earned(example: Example, config: BanditConfig) -> float:
    """Return the value that policies are compared by, in [0, 1].

    It is the judged reward minus the stated cost, or minus the measured cost if none is stated. A
    value below 0 counts as 0: bounds by betting need a least value.
    """
    stated = _stated(example)
    cost = example.cost if stated is None else stated
    value = judged(example.reward, example.criteria, config)
    return max(0.0, value - config.cost_weight * cost)


def came_to(outcome: RolloutOutcome, config: BanditConfig) -> float:
    """Return the value that rollouts are compared by, in [0, 1]: the judged reward minus the cost
    of all its model calls, or 0 where that is negative.

    Raises:
        ValueError: the rollout has no reward.
    """
    if outcome.reward is None:
        raise ValueError(f"a rollout of {outcome.name} has no reward")
    value = judged(outcome.reward, outcome.criteria, config)
    return max(0.0, value - config.cost_weight * outcome.cost)


def _stated(example: Example) -> float | None:
    body = example.body
    return (
        body.decision.candidates[body.decision.choice].cost
        if isinstance(body, BanditExample)
        else None
    )
