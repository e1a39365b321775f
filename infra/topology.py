"""Which processors run, built from the configuration; the same for both runners."""

from functools import partial
from typing import Any

from infra.config import Settings
from infra.grading import configured_grader, configured_reader
from learners.bandit import BanditLearner
from learners.bandit.worth import earned
from streams.artifacts import ArtifactStore
from streams.batching import Batching
from streams.implicit import ImplicitFeedback
from streams.judging import Judge
from streams.learning import Learning
from streams.processor import Processor
from streams.promotion import Promotion
from streams.routing import LessonRouter
from streams.trajectories import TrajectoryJoin


def stream_processors(settings: Settings) -> list[Processor[Any]]:
    """Return what joins, routes, judges, promotes and collects batches."""
    artifacts = ArtifactStore(settings.artifacts_dir)
    implicit = [ImplicitFeedback(configured_reader(settings))] if settings.implicit.enabled else []
    return [
        *implicit,
        TrajectoryJoin(settings.join),
        LessonRouter(settings.adapter, settings.join.late_reward_window),
        Judge(configured_grader(settings)),
        Promotion(settings.gate, artifacts, partial(earned, config=settings.bandit.learner_config())),
        Batching("sft", settings.adapter.sft, settings.batches),
        Batching("rl", settings.adapter.rl, settings.batches),
    ]


def learning_processors(settings: Settings) -> list[Learning[Any]]:
    """Return the online learners, one for each thing to be learned."""
    artifacts = ArtifactStore(settings.artifacts_dir)
    config = settings.bandit.learner_config()
    return [Learning(BanditLearner(target, config), artifacts) for target in settings.policies]


def all_processors(settings: Settings) -> list[Processor[Any]]:
    """Return every processor of an installation."""
    return [*stream_processors(settings), *learning_processors(settings)]
