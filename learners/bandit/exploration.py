"""Exploration: from beliefs about candidates to the distribution that the choice is drawn from."""

from collections.abc import Sequence
from math import fsum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Exploration = Literal["squarecb", "thompson", "bag", "epsilon"]

GRID = 48
REACH = 4.0


def squarecb(means: Sequence[float], gamma: float) -> list[float]:
    """Return SquareCB's distribution (Foster & Rakhlin, ICML 2020).

    Each candidate gets 1 / (K + gamma * its gap to the best), the best one the rest.

    Args:
        means: of K >= 1 candidates.
        gamma: how greedy, >= 0; 0 is uniform.

    Returns:
        K probabilities, summing to 1. Equal beliefs get equal probabilities, and order changes
        nothing.
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
    """Return each candidate's probability of being the best, beliefs being independent and normal.

    Thompson sampling (Biometrika, 1933) chooses with these probabilities. Here they are integrated
    rather than sampled, so that the distribution is exact and can be logged: the integral over z of
    the density of one candidate at z times the chances of all others to be below z, by the
    trapezoidal rule on a grid over the best ones' beliefs.

    Args:
        means, deviations: shape (K,), K >= 1; deviations >= 0.

    Returns:
        K probabilities, summing to 1. Equal beliefs get equal probabilities.
    """
    from scipy.special import (
        ndtr,  # takes a third of a second to import, in every process that reads settings
    )

    order = np.lexsort(
        (deviations, means)
    )  # the sums below must not depend on the order of the candidates
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
    """Return the share of an ensemble that holds each candidate for the best (bagging; Agarwal et
    al., ICML 2014).

    Args:
        members: shape (E, K), what each member predicts; one that holds several for the best
            divides its vote.

    Returns:
        K probabilities, summing to 1.
    """
    best = members == members.max(axis=1, keepdims=True)
    return (best / best.sum(axis=1, keepdims=True)).mean(axis=0).tolist()  # type: ignore[no-any-return]


def greedy(means: Sequence[float]) -> list[float]:
    """Return the distribution on the best candidate, or evenly on the best ones: exploring is left
    to the floor.
    """
    best = max(means, default=0.0)
    leaders = sum(mean == best for mean in means)
    return [float(mean == best) / leaders for mean in means]


def with_floor(chances: Sequence[float], epsilon: float) -> list[float]:
    """Return a distribution mixed with epsilon times the uniform one, so that weights stay below K
    / epsilon.

    Args:
        chances: K >= 1 probabilities.
        epsilon: share of uniform exploration, in (0, 1].

    Raises:
        ValueError: there is no candidate, or epsilon is out of range.
    """
    if not chances:
        raise ValueError("there is nothing to choose from")
    if not 0.0 < epsilon <= 1.0:
        raise ValueError(f"epsilon must be in (0, 1], got {epsilon}")
    floor = epsilon / len(chances)
    return [floor + (1.0 - epsilon) * chance for chance in chances]
