"""The bandit learner: folds rewarded decisions into the regressor and announces policies."""

from dataclasses import dataclass
from hashlib import sha256
from math import sqrt
from typing import Annotated

import orjson
from pydantic import BaseModel, ConfigDict, Field

from learners.bandit.features import FEATURE_VERSION, features
from learners.bandit.policy import MEDIA_TYPE, BanditPolicy, regressor_from_json, regressor_to_json
from learners.bandit.regressor import DiagonalBayesianRegressor
from learners.contract import NewCheckpoint
from schemas.examples import BanditExample, ExampleEvent

Positive = Annotated[float, Field(gt=0.0)]


class BanditConfig(BaseModel):
    """Settings of the bandit.

    Attributes:
        announce_every: lessons between two checkpoints.
        gamma_scale: greed of what is served: gamma is this times the root of the number of lessons.
        epsilon: share of uniform exploration in what is served.
        noise_variance, prior_variance: see `DiagonalBayesianRegressor`.
        error_halflife: lessons after which an error counts half in the running mean that is reported.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    announce_every: int = Field(default=10, ge=1)
    gamma_scale: Positive = 25.0
    epsilon: float = Field(default=0.03, gt=0.0, le=1.0)
    noise_variance: Positive = 0.05
    prior_variance: Positive = 0.1
    error_halflife: Positive = 50.0


@dataclass
class BanditState:
    """Everything the bandit knows.

    Attributes:
        lessons: rewarded decisions learned from.
        corrections: later rewards of lessons already learned; counted, not learned, so that nothing counts twice.
        reward_total: of all lessons.
        squared_error: of the predictions before each lesson, exponentially weighted.
    """

    regressor: DiagonalBayesianRegressor
    lessons: int = 0
    corrections: int = 0
    reward_total: float = 0.0
    squared_error: float = 0.0


class BanditLearner:
    """Learns which candidate earns most, from the rewards of those that were chosen.

    Only training rollouts are lessons: what the gate judges by must never have been learned from.

    Args:
        target: logical name of the policy.
    """

    identity = f"bandit@1.{FEATURE_VERSION}"

    def __init__(self, target: str, config: BanditConfig | None = None) -> None:
        self.target = target
        self.config = config or BanditConfig()
        self._fading = 1.0 - 0.5 ** (1.0 / self.config.error_halflife)
        self.config_sha256 = sha256(orjson.dumps(self.config.model_dump(), option=orjson.OPT_SORT_KEYS)).hexdigest()

    def initial(self) -> BanditState:
        """Return the state before the first lesson: nothing known, every candidate as good as any other."""
        return BanditState(DiagonalBayesianRegressor(self.config.noise_variance, self.config.prior_variance))

    def fold(self, state: BanditState, event: ExampleEvent) -> BanditState:
        """Learn one rewarded decision. Examples that are no lesson change nothing but, for corrections, a count."""
        example = event.payload
        if not isinstance(example.body, BanditExample) or example.split != "train":
            return state
        if example.reward_revision > 1:
            state.corrections += 1
            return state
        decision = example.body.decision
        x = features(decision.context, decision.candidates[decision.choice])
        error = example.reward - state.regressor.predict_one(x)
        recent = max(self._fading, 1.0 / (state.lessons + 1))
        state.squared_error += recent * (error * error - state.squared_error)
        state.reward_total += example.reward
        state.regressor.learn_one(x, example.reward)
        state.lessons += 1
        return state

    def checkpoint(self, state: BanditState) -> NewCheckpoint | None:
        """Return the policy after every `announce_every`-th lesson."""
        if state.lessons == 0 or state.lessons % self.config.announce_every:
            return None
        gamma = self.config.gamma_scale * sqrt(state.lessons)
        artifact = BanditPolicy(state.regressor, gamma, self.config.epsilon).to_bytes()
        return NewCheckpoint(
            name=self.target,
            version=f"{state.lessons:06d}-{sha256(artifact).hexdigest()[:12]}",
            kind="policy",
            artifact=artifact,
            media_type=MEDIA_TYPE,
            lessons=state.lessons,
            metrics={
                "mean_reward": state.reward_total / state.lessons,
                "squared_error": state.squared_error,
                "weights": float(len(state.regressor.means)),
            },
        )

    def encode(self, state: BanditState) -> bytes:
        """Return the state as JSON, exact to the bit."""
        return orjson.dumps(
            {
                "regressor": regressor_to_json(state.regressor),
                "lessons": state.lessons,
                "corrections": state.corrections,
                "reward_total": state.reward_total,
                "squared_error": state.squared_error,
            },
            option=orjson.OPT_SORT_KEYS,
        )

    def decode(self, value: bytes) -> BanditState:
        """Return the state that `encode` wrote."""
        document = orjson.loads(value)
        return BanditState(**document | {"regressor": regressor_from_json(document["regressor"])})
