"""Lower bounds of a mean that hold at every moment, and how much evidence they need.

Confidence sequences by betting (Waudby-Smith & Ramdas, JRSS B 2024; for weighted rewards
Waudby-Smith, Wu, Ramdas, Karampatziakis & Mineiro, 2022). They hold at every number of values at
once, so one may look at any time. They need no upper bound on the values.
"""

from math import ceil
from math import log as ln

import numpy as np

from learners.betting import FRACTIONS
from learners.logged import Floats

# 50 halvings bring the bound to 1e-15 of the range, the precision of a float.
BISECTIONS = 50


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
    # The bound lies below the greatest value; the second term keeps the range from being empty.
    high = max(float(np.max(values)), low + 1.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if _ruled_out(values, least, middle, error):
            low = middle
        else:
            high = middle
    return low


def _ruled_out(values: Floats, least: Floats | float, mean: float, error: float) -> bool:
    """Return whether the stake would have reached 1/error at any time if `mean` were the mean."""
    if mean <= np.max(least):
        return True
    odds = (values - mean) / (mean - least)
    stakes = np.cumsum(np.log1p(np.outer(FRACTIONS, odds)), axis=1)
    # Taken out of the sum, so that exp() cannot overflow.
    most = stakes.max(axis=0)
    mixed = most + np.log(np.exp(stakes - most).mean(axis=0))
    return bool(mixed.max() >= ln(1.0 / error))


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
            `learners.gains.difference_deviation`.
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
