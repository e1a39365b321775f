"""Exploration: turns beliefs about candidates into the distribution that a choice is drawn from."""

from collections.abc import Sequence
from math import fsum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Exploration = Literal["squarecb", "thompson", "bag", "epsilon"]

# A normal variable is within 4 standard deviations of its mean with probability 0.99994. On 48
# points between, the trapezoidal rule is exact enough to choose by.
GRID = 48
REACH = 4.0


def squarecb(means: Sequence[float], gamma: float) -> list[float]:
    """Return SquareCB's distribution (Foster & Rakhlin, ICML 2020).

    Each candidate gets 1 / (K + gamma * gap), where gap is how far its mean is below the best one.
    The best candidate gets the rest.

    Args:
        means: expected rewards of K >= 1 candidates.
        gamma: greed, >= 0; 0 gives the uniform distribution.

    Returns:
        K probabilities that sum to 1. Equal beliefs get equal probabilities. The order of the
            candidates changes nothing.
    """
    count, best = len(means), max(means, default=0.0)
    chances = [0.0 if mean == best else 1.0 / (count + gamma * (best - mean)) for mean in means]
    rest = 1.0 - fsum(chances)
    leaders = sum(mean == best for mean in means)
    return [
        rest / leaders if mean == best else chance
        for mean, chance in zip(means, chances, strict=True)
    ]


def thompson(means: Floats, deviations: Floats) -> list[float]:
    """Return each candidate's probability of being the best, for independent normal beliefs.

    Thompson sampling (Biometrika, 1933) chooses with these probabilities. This function integrates
    instead of sampling, so the distribution can be logged. It integrates, over z, the density of
    one candidate at z times the probability that all others are below z. It uses the trapezoidal
    rule on a grid that spans the beliefs about the best candidates.

    Args:
        means, deviations: shape (K,), K >= 1; deviations >= 0.

    Returns:
        K probabilities that sum to 1. Equal beliefs get equal probabilities.
    """
    # Imported here because it takes a third of a second, in every process that reads settings.
    from scipy.special import ndtr

    # Sort, so that the sums below do not depend on the order of the candidates.
    order = np.lexsort((deviations, means))
    mean, deviation = means[order], np.maximum(deviations[order], 1e-9)
    grid = np.linspace(np.max(mean - REACH * deviation), np.max(mean + REACH * deviation), GRID)
    below = np.maximum(ndtr((grid - mean[:, None]) / deviation[:, None]), 1e-12)
    others = np.exp(np.log(below).sum(axis=0) - np.log(below))
    best = (np.diff(below, axis=1) * (others[:, 1:] + others[:, :-1])).sum(axis=1) / 2 + below[
        :, 0
    ] * others[:, 0]
    chances: Floats = np.empty_like(best)
    chances[order] = best / best.sum()
    return chances.tolist()  # type: ignore[no-any-return]


def bag(members: Floats) -> list[float]:
    """Return the share of the ensemble's votes for each candidate (bagging; Agarwal et al., ICML
    2014).

    Args:
        members: shape (E, K), the prediction of each member. A member with several best candidates
            divides its vote.

    Returns:
        K probabilities that sum to 1.
    """
    best = members == members.max(axis=1, keepdims=True)
    return (best / best.sum(axis=1, keepdims=True)).mean(axis=0).tolist()  # type: ignore[no-any-return]


def greedy(means: Sequence[float]) -> list[float]:
    """Return the distribution on the best candidate, or evenly on several best ones.

    It does not explore: `with_floor` does.
    """
    best = max(means, default=0.0)
    leaders = sum(mean == best for mean in means)
    return [float(mean == best) / leaders for mean in means]


def with_floor(chances: Sequence[float], epsilon: float) -> list[float]:
    """Return the distribution mixed with the uniform one, so that weights stay at or below K /
    epsilon.

    Args:
        chances: K >= 1 probabilities.
        epsilon: share of uniform exploration, in (0, 1].

    Raises:
        ValueError: there is no candidate, or epsilon is out of range.
    """
    if not chances:
        raise ValueError("there is no candidate to choose; give at least one")
    if not 0.0 < epsilon <= 1.0:
        raise ValueError(f"epsilon must be in (0, 1], got {epsilon}")
    floor = epsilon / len(chances)
    return [floor + (1.0 - epsilon) * chance for chance in chances]
