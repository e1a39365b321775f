"""Contextual bandit with action-dependent features on River, learning online from delayed rewards.

Dropped from the literature on purpose: context main effects (they cannot change which candidate is best) and updates of
the candidates that were not chosen (their rewards were not seen).
"""

from learners.bandit.learner import BanditConfig, BanditLearner, BanditState
from learners.bandit.policy import MEDIA_TYPE, BanditPolicy

__all__ = ["MEDIA_TYPE", "BanditConfig", "BanditLearner", "BanditPolicy", "BanditState"]
