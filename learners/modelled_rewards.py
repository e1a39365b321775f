"""Rewards of logged decisions by a regression, for the direct method."""

from collections.abc import Sequence

import numpy as np

from learners.bandit.features import Features, features
from learners.bandit.regressor import BlockBayesianRegressor, RegressorConfig
from learners.logged import Floats, Logged

FOLDS = 5
MODEL = RegressorConfig(prior_variance=0.5, forgetting=(1e-5,), dense=0)
"""The regression of the direct method. It has no covariances, because each fold fits it once more.
"""


class ModelledRewards:
    """Rewards by a regression. That of a decision has not seen the decision (cross-fitting).

    Attributes:
        chosen: shape (n,), modelled rewards of the chosen candidates.
        regrets: shape (n,), modelled reward of the best candidate minus `chosen`.
    """

    def __init__(self, log: Sequence[Logged]) -> None:
        slates = [features(item.decision.context, item.decision.candidates) for item in log]
        models = [_fit(slates, log, fold) for fold in range(FOLDS)]
        self._all = [
            # A linear model may leave the range of rewards.
            np.clip(models[number % FOLDS].predict_many(candidates), 0.0, 1.0)
            for number, candidates in enumerate(slates)
        ]
        self.chosen: Floats = np.array(
            [modelled[item.decision.choice] for modelled, item in zip(self._all, log, strict=True)]
        )
        self.regrets: Floats = np.array([np.max(modelled) for modelled in self._all]) - self.chosen

    def values(self, distributions: Sequence[Floats]) -> Floats:
        """Return the expected reward of each decision, shape (n,)."""
        return np.array([float(p @ q) for p, q in zip(distributions, self._all, strict=True)])


def _fit(
    slates: list[list[Features]], log: Sequence[Logged], left_out: int
) -> BlockBayesianRegressor:
    model = BlockBayesianRegressor(MODEL)
    for number, (candidates, item) in enumerate(zip(slates, log, strict=True)):
        # A model that has seen a decision's reward would flatter the policy that made it.
        if number % FOLDS != left_out:
            model.learn_one(candidates[item.decision.choice], item.reward)
    return model


def regrets(log: Sequence[Logged]) -> Floats:
    """Return how much more the best candidate of each decision would have earned, by the direct
    method.

    The rewards of a decision are modelled from the other decisions. The greatest of several noisy
    estimates is too high on average, so regrets are rather too great than too small.

    Returns:
        Shape (n,), in [0, 1].
    """
    return ModelledRewards(log).regrets
