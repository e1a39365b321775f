"""Exploration prefers what is believed better, and gives every candidate its least chance."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.bandit.exploration import greedy, squarecb, thompson, with_floor

values = st.lists(st.floats(-5, 5), min_size=1, max_size=10)


@given(values, st.floats(0, 1e6), st.floats(1e-3, 1))
def test_exploration_prefers_what_is_believed_better(
    rewards: list[float], gamma: float, epsilon: float
) -> None:
    means = np.array(rewards)
    for chances in (
        squarecb(rewards, gamma),
        thompson(means, np.full(len(means), 0.1)),
        greedy(rewards),
    ):
        floored = with_floor(chances, epsilon)
        assert sum(floored) == pytest.approx(1.0, abs=1e-9)
        for (first, p), (second, q) in itertools.combinations(
            zip(rewards, floored, strict=True), 2
        ):
            assert (p >= q - 1e-9) if first >= second else (q >= p - 1e-9)


def test_thompson_sampling_is_integrated_exactly() -> None:
    """Beside ten million draws from the same beliefs."""
    means, deviations = np.array([0.5, 0.45, 0.2, 0.5]), np.array([0.1, 0.2, 0.3, 0.01])
    draws = np.random.default_rng(0).normal(means, deviations, size=(1_000_000, 4))
    drawn = np.bincount(draws.argmax(axis=1), minlength=4) / len(draws)
    assert thompson(means, deviations) == pytest.approx(drawn, abs=0.01)


@pytest.mark.parametrize(("rewards", "epsilon"), [([], 0.1), ([1.0], 0.0), ([1.0], 1.5)])
def test_impossible_exploration_is_refused(rewards: list[float], epsilon: float) -> None:
    with pytest.raises(ValueError, match=r"no candidate|epsilon"):
        with_floor(rewards, epsilon)
