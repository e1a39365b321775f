"""Contextual bandit with action-dependent features on River, learning online from delayed and
corrected rewards.

Dropped from the literature on purpose: context main effects (they cannot change which candidate is
best) and, by default, updates of the candidates that were not chosen (their rewards were not seen).
"""

from learners.bandit.config import BanditConfig
from learners.bandit.learner import BanditLearner, BanditState
from learners.bandit.online import OnlineBandit, benchmark_policy
from learners.bandit.policy import MEDIA_TYPE, BanditPolicy

__all__ = [
    "MEDIA_TYPE",
    "BanditConfig",
    "BanditLearner",
    "BanditPolicy",
    "BanditState",
    "OnlineBandit",
    "benchmark_policy",
]
