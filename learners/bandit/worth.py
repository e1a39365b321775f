"""What a decision is worth: its reward, or its weighed criteria, less what it cost."""

from math import fsum

from learners.bandit.config import BanditConfig
from schemas.examples import BanditExample, Example


def judged(example: Example, config: BanditConfig) -> float:
    """Return the reward, or the mean of the criteria that are weighed, as far as there are any; in
    [0, 1].
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
    """Return what is learned: what was judged, less the measured cost.

    A cost that was stated with the candidate is left to the policy, which minds it when it chooses.
    """
    return judged(example, config) - (
        0.0 if _stated(example) is not None else config.cost_weight * example.cost
    )


def earned(example: Example, config: BanditConfig) -> float:
    """Return what policies are compared by: what was judged, less the stated cost, or the measured
    one; in [0, 1].

    Below 0 it counts as 0: bounds by betting need to know how little can be earned.
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
