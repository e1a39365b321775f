"""The worth of a decision: its reward, or its weighted criteria, minus its cost."""

from math import fsum

from learners.bandit.config import BanditConfig
from schemas.examples import BanditExample, Example


def judged(example: Example, config: BanditConfig) -> float:
    """Return the weighted mean of the configured criteria that the example has; else its reward.

    The result is in [0, 1].
    """
    weights = {
        name: weight for name, weight in sorted(config.criteria.items()) if name in example.criteria
    }
    if not weights:
        return example.reward
    return fsum(weight * example.criteria[name] for name, weight in weights.items()) / fsum(
        weights.values()
    )


def taught(example: Example, config: BanditConfig) -> float:
    """Return the value that the learner learns: the judged reward, minus the measured cost.

    A stated cost is not subtracted here: the policy subtracts it when it chooses.
    """
    return judged(example, config) - (
        0.0 if _stated(example) is not None else config.cost_weight * example.cost
    )


def earned(example: Example, config: BanditConfig) -> float:
    """Return the value that policies are compared by, in [0, 1].

    It is the judged reward minus the stated cost, or minus the measured cost if none is stated. A
    value below 0 counts as 0: bounds by betting need a least value.
    """
    stated = _stated(example)
    return max(
        0.0,
        judged(example, config) - config.cost_weight * (example.cost if stated is None else stated),
    )


def _stated(example: Example) -> float | None:
    body = example.body
    return (
        body.decision.candidates[body.decision.choice].cost
        if isinstance(body, BanditExample)
        else None
    )
