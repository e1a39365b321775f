"""Explanations of a decision: the features behind it, and the features a policy uses most."""

from collections.abc import Sequence
from dataclasses import dataclass

from learners.bandit.features import Features
from learners.bandit.policy import BanditPolicy, Weights
from schemas.decisions import Decision


@dataclass(frozen=True)
class Reasons:
    """A policy's view of one candidate.

    Attributes:
        believed: expected reward, minus the stated cost.
        probability: with which the policy chooses the candidate.
        contributions: feature name to the reward that the feature adds, relative to the mean
            candidate of the slate; the greatest first. They sum to `believed` minus the mean belief
            of the slate.
    """

    believed: float
    probability: float
    contributions: dict[str, float]


def reasons(policy: BanditPolicy, decision: Decision) -> list[Reasons]:
    """Return why a policy would choose as it would, for each candidate of a decision.

    Beliefs are linear in the features. So the share of a feature is its weight times its value,
    without approximation.
    """
    slate, weights = _features(policy, decision), _weights(policy)
    names = policy.names_of(decision.context, decision.candidates, decision.tenant)
    terms = [
        {index: weights.by_feature.get(index, 0.0) * value for index, value in x.items()}
        for x in slate
    ]
    mean = {
        index: sum(of.get(index, 0.0) for of in terms) / len(terms) for of in terms for index in of
    }
    chances = policy.probabilities(decision.context, decision.candidates, decision.tenant)
    explained = []
    for candidate, of, probability in zip(decision.candidates, terms, chances, strict=True):
        beyond = {index: of.get(index, 0.0) - mean[index] for index in mean}
        ranked = sorted(beyond.items(), key=lambda item: (-abs(item[1]), item[0]))
        cost = policy.cost_weight * (candidate.cost or 0.0)
        explained.append(
            Reasons(
                weights.centre + sum(of.values()) - cost,
                probability,
                {
                    names.get(index, f"feature {index}"): value
                    for index, value in ranked
                    if value != 0.0
                },
            )
        )
    return explained


def importance(policy: BanditPolicy, decisions: Sequence[Decision]) -> dict[str, float]:
    """Return how much each feature moves the beliefs within a slate, as a mean over decisions.

    The greatest comes first. For one decision it is the mean over the candidates of the absolute
    contribution (see `Reasons`).
    """
    totals: dict[str, float] = {}
    for decision in decisions:
        for explained in reasons(policy, decision):
            for name, value in explained.contributions.items():
                totals[name] = totals.get(name, 0.0) + abs(value) / len(decision.candidates)
    ranked = sorted(totals.items(), key=lambda item: (-item[1], item[0]))
    return {name: total / len(decisions) for name, total in ranked}


def _features(policy: BanditPolicy, decision: Decision) -> list[Features]:
    return policy.features(decision.context, decision.candidates, decision.tenant)


def _weights(policy: BanditPolicy) -> Weights:
    return policy.beliefs if isinstance(policy.beliefs, Weights) else Weights.of(policy.beliefs)
