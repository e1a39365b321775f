"""Settings of the bandit."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from learners.bandit.exploration import Exploration
from learners.bandit.regressor import RegressorConfig

Positive = Annotated[float, Field(gt=0.0)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class BanditConfig(BaseModel):
    """Settings of the bandit. The defaults are those that did best in `make bench-bandit`.

    Attributes:
        announce_every: examples between two checkpoints.
        exploration: `squarecb`; `thompson`; `bag`, an ensemble votes; `epsilon`, the best one and
            the floor.
        gamma_scale: greed of `squarecb`: gamma is this times the root of the number of examples.
        thompson_greed: what the beliefs' standard deviations are divided by in `thompson`.
        bags: members of the ensemble of `bag`.
        epsilon: share of uniform exploration in what is served.
        update: what an example teaches: the reward of the choice (`direct`), weighted by one over
            its propensity (`importance`), or its doubly robust estimate (`doubly-robust`; Dudík,
            Langford & Li, ICML 2011).
        most_weight: largest importance weight.
        prior_mean, prior_variance, noise_share, forgetting, block, dense: see `RegressorConfig`.
        criteria: where given, an example's reward is the mean of the scores by these criteria, so
            weighted, as far as it has them.
        cost_weight: reward that one unit of money is worth. A candidate's stated cost counts when
            it is chosen; where none is stated, what the rollout's model calls cost counts when it
            is learned.
        tenant_share: 0 is one policy for all tenants; above, each tenant's weights differ from the
            shared ones by this share of the prior variance.
        correctable: examples whose reward may still be corrected; the correction undoes the old
            reward wholly.
        drift_delta: chance of a false alarm of ADWIN on the prediction errors.
        drift_reaction: share by which beliefs return to the prior on such an alarm.
        error_halflife: examples after which an error counts half in the running mean that is
            reported.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    announce_every: int = Field(default=10, ge=1)
    exploration: Exploration = "squarecb"
    gamma_scale: Positive = 200.0
    thompson_greed: Positive = 8.0
    bags: int = Field(default=8, ge=2, le=100)
    epsilon: float = Field(default=0.03, gt=0.0, le=1.0)
    update: Literal["direct", "importance", "doubly-robust"] = "direct"
    most_weight: float = Field(default=20.0, ge=1.0)
    prior_mean: float = Field(default=0.5, ge=-1e6, le=1e6)
    prior_variance: Positive = 0.25
    noise_share: Positive = 0.7
    forgetting: tuple[Share, ...] = Field(default=(1e-5, 2e-3), min_length=1, max_length=16)
    block: int = Field(default=96, ge=1, le=1024)
    dense: int = Field(default=768, ge=0, le=16_384)
    criteria: dict[str, Positive] = {}
    cost_weight: float = Field(default=0.0, ge=0.0)
    tenant_share: float = Field(default=0.0, ge=0.0)
    correctable: int = Field(default=128, ge=1, le=10_000)
    drift_delta: Share = 0.05
    drift_reaction: float = Field(default=0.1, ge=0.0, le=1.0)
    error_halflife: Positive = 50.0

    def regressor(self) -> RegressorConfig:
        """Return what the regression is configured by."""
        bagged = self.exploration == "bag"
        return RegressorConfig(
            prior_mean=self.prior_mean,
            prior_variance=self.prior_variance,
            noise_share=self.noise_share,
            forgetting=self.forgetting[:1] * self.bags if bagged else self.forgetting,
            block=self.block,
            dense=self.dense,
            bootstrap=bagged,
        )
