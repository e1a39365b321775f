"""Exploration: SquareCB, mixed with a uniform floor."""

from collections.abc import Sequence


def choice_probabilities(rewards: Sequence[float], gamma: float, epsilon: float) -> list[float]:
    """Return SquareCB's distribution (Foster & Rakhlin, ICML 2020) over candidates.

    Each candidate gets 1 / (K + gamma * its gap to the best), the best one the rest; mixed with epsilon times the
    uniform distribution, so that off-policy evaluation keeps weights below K / epsilon.

    Args:
        rewards: believed rewards of the K >= 1 candidates.
        gamma: how greedy, >= 0; 0 is uniform.
        epsilon: share of uniform exploration, in (0, 1].

    Returns:
        K probabilities, each >= epsilon / K, summing to 1 within rounding. Equal rewards get equal probabilities.
    """
    if not rewards:
        raise ValueError("there is nothing to choose from")
    if not 0.0 < epsilon <= 1.0:
        raise ValueError(f"epsilon must be in (0, 1], got {epsilon}")
    count, best = len(rewards), max(rewards)
    leaders = sum(reward == best for reward in rewards)
    inverse = [1.0 / (count + gamma * (best - reward)) for reward in rewards]
    rest = 1.0 - sum(chance for chance, reward in zip(inverse, rewards, strict=True) if reward != best)
    squared = [rest / leaders if reward == best else chance for chance, reward in zip(inverse, rewards, strict=True)]
    return [epsilon / count + (1.0 - epsilon) * chance for chance in squared]
