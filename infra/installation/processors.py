"""The processors of an installation, built from its settings. Both runners carry the same."""

from functools import partial
from typing import Any

from infra.config.settings import Settings
from infra.installation.judges import configured_grader, configured_reader
from learners.bandit import BanditLearner
from learners.bandit.worth import came_to
from learners.contract import Learner
from learners.settings import policy_loader
from streams.processing.processor import Processor
from streams.processors.batcher import Batching
from streams.processors.implicit import ImplicitFeedback
from streams.processors.inspection import inspections
from streams.processors.judge import Judge
from streams.processors.learner import Learning
from streams.processors.promotion import Promotion
from streams.processors.router import ExampleRouter
from streams.processors.trajectories import TrajectoryJoin
from streams.storage.artifacts import ArtifactStore


def stream_processors(settings: Settings) -> list[Processor[Any]]:
    """Return the processors of the worker: join, router, judge, promotion, batches."""
    artifacts = ArtifactStore(settings.artifacts_dir)
    grader = configured_grader(settings)
    judges = [Judge(grader)] if grader is not None else []
    implicit = [ImplicitFeedback(configured_reader(settings))] if settings.implicit.enabled else []
    return [
        *implicit,
        TrajectoryJoin(settings.join),
        # Remembered as long as the join may correct a reward.
        ExampleRouter(settings.adapter, settings.join.late_reward_window),
        *judges,
        Promotion(
            settings.gate,
            artifacts,
            partial(came_to, config=settings.bandit.learner_config()),
            policy_loader(settings.learners),
        ),
        Batching("sft", settings.adapter.sft, settings.batches),
        Batching("rl", settings.adapter.rl, settings.batches),
        *inspections({*settings.policies, *settings.adapter.sft, *settings.adapter.rl}),
    ]


def learning_processors(settings: Settings) -> list[Learning[Any]]:
    """Return the online learners, one for each thing to be learned."""
    artifacts = ArtifactStore(settings.artifacts_dir)
    config = settings.bandit.learner_config()
    learners: list[Learner[Any]] = [
        BanditLearner(name, config) for name in settings.bandit_policies
    ]
    learners += [learner for own in settings.learners for learner in own.build()]
    return [Learning(learner, artifacts) for learner in learners]


def all_processors(settings: Settings) -> list[Processor[Any]]:
    """Return every processor of an installation."""
    return [*stream_processors(settings), *learning_processors(settings)]
