"""The regressor of the bandit: Bayesian within a block, and a regressor for long."""

from random import Random
from typing import Any

import numpy as np
import pytest
from river import checks

from learners.bandit.regressor import BlockBayesianRegressor, RegressorConfig


def test_the_regressor_passes_rivers_own_checks() -> None:
    for check in checks.yield_checks(BlockBayesianRegressor()):
        check(BlockBayesianRegressor())


def test_within_a_block_it_is_bayesian_linear_regression() -> None:
    """Beside the normal equations, the reward's mean and noise held where the regressor holds
    them.
    """
    config = RegressorConfig(forgetting=(1e-12,))
    regressor, random = BlockBayesianRegressor(config), np.random.default_rng(1)
    precision, moments = np.zeros((4, 4)), np.zeros(4)
    prior = 0.0
    for _ in range(50):
        x = random.choice([-1.0, 1.0], size=4)  # of norm 2 every time, so the prior does not move
        y = float(x @ [0.2, -0.1, 0.4, 0.0] + random.normal(0, 0.05))
        noise = max(1e-4, config.noise_share * float(regressor.errors[0]))
        regressor.learn_one(dict(enumerate(x.tolist(), start=1)), y)
        precision += np.outer(x, x) / noise
        moments += x * (y - config.prior_mean) / noise
        prior = regressor.prior
    solved = np.linalg.solve(precision + np.eye(4) / prior, moments)
    weights = regressor.weights()
    assert [weights[index] for index in (1, 2, 3, 4)] == pytest.approx(solved, abs=1e-6)


def test_blocks_that_meet_are_joined_and_what_has_no_room_is_learned_without_covariance() -> None:
    regressor = BlockBayesianRegressor(RegressorConfig(block=4, dense=6))
    regressor.learn_one({1: 1.0, 2: 1.0}, 1.0).learn_one({3: 1.0, 4: 1.0}, 0.0).learn_one(
        {1: 1.0, 3: 1.0}, 0.5
    )
    assert {block.width for block in regressor.beliefs.blocks.values()} == {4}
    regressor.learn_one({1: 1.0, 5: 1.0}, 1.0).learn_one({6: 1.0, 7: 1.0, 8: 1.0}, 1.0)
    assert sum(block.width for block in regressor.beliefs.blocks.values()) == 6
    assert len(regressor.beliefs.slot_of) == 8
    for block in regressor.beliefs.blocks.values():
        for member in block.filled:
            assert np.linalg.eigvalsh(member).min() > 0.0
            assert (member == member.T).all()


@pytest.mark.slow
def test_the_regressor_stays_a_regressor_over_many_examples() -> None:
    """`make bench-bandit` does ten million."""
    regressor, random = BlockBayesianRegressor(RegressorConfig(dense=24, block=16)), Random(5)
    for _ in range(100_000):
        x = {random.randrange(40): random.choice([-1.0, 0.5, 1e3, 1e-3]) for _ in range(5)}
        regressor.learn_one(x, random.random())
    assert np.isfinite(regressor.beliefs.means).all()
    assert all(
        np.linalg.eigvalsh(member).min() > 0.0
        for block in regressor.beliefs.blocks.values()
        for member in block.filled
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"prior_variance": 0.0},
        {"noise_share": 0.0},
        {"forgetting": ()},
        {"forgetting": (1.0,)},
        {"block": 0},
    ],
)
def test_impossible_beliefs_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        RegressorConfig(**wrong)
