"""Contextual bandit on River that learns online from delayed and corrected rewards.

It leaves out two things from the literature. Main effects of the context cannot change which
candidate is best. By default it does not learn about candidates that were not chosen, because
nobody saw their rewards.
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
