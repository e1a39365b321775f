"""Settings of the bandit."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from learners.announcements import AnnouncementConfig
from learners.bandit.embeddings import check_installed
from learners.bandit.exploration import Exploration
from learners.bandit.regressor import RegressorConfig

Positive = Annotated[float, Field(gt=0.0)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class BanditConfig(BaseModel):
    """Settings of the bandit. The defaults are those that did best in `make bench-bandit`.

    Attributes:
        announce: when a version is announced.
        exploration: `squarecb`; `thompson`; `bag` (votes of an ensemble); `epsilon` (the best
            candidate, and `epsilon` of uniform exploration).
        gamma_scale: gamma of `squarecb` is this times the square root of the number of examples.
        thompson_greed: `thompson` divides the standard deviations of the beliefs by this.
        bags: members of the ensemble of `bag`.
        epsilon: share of uniform exploration in every served distribution, in (0, 1].
        update: what an example teaches: `direct`, the reward of the choice; `importance`, the
            reward weighted by 1/propensity; `doubly-robust`, the doubly robust estimate (Dudík,
            Langford & Li, ICML 2011).
        most_weight: largest importance weight.
        prior_mean, prior_variance, noise_share, forgetting, noisier, block, dense: see
            `RegressorConfig`.
        criteria: weights by criterion. If an example has scores for some of them, its reward is
            their weighted mean.
        cost_weight: reward that one unit of money is worth, >= 0. The policy subtracts the stated
            cost of a candidate when it chooses. Without a stated cost, the learner subtracts the
            cost of the rollout's model calls.
        tenant_share: 0 is one policy for all tenants. Above 0, each tenant has weights of its own,
            which differ from the shared ones by this share of the prior variance.
        embeddings: whether the policy also reads what a context means; needs the extra of this name
            in every process that learns or serves it. See `learners.bandit.embeddings`.
        steps: bytes in which the learner keeps what the newest examples did, some 100 to 350
            examples. A correction of these is carried through all that came later; of an older one
            it is estimated. 0 keeps none.
        remembered: the newest examples of which the learner knows how much is left of what they
            taught; 56 bytes each with three members. A correction of an older one is learned too,
            with an estimate.
        drift_delta: probability of a false alarm of ADWIN on the prediction errors, in (0, 1).
        drift_reaction: share by which the beliefs return to the prior after an alarm, in [0, 1].
        error_halflife: examples after which an error counts half in the reported running mean.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    announce: AnnouncementConfig = AnnouncementConfig()
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
    noisier: tuple[Annotated[float, Field(ge=1.0, le=1e6)], ...] = Field(
        default=(4.0,), max_length=16
    )
    block: int = Field(default=96, ge=1, le=1024)
    dense: int = Field(default=768, ge=0, le=16_384)
    criteria: dict[str, Positive] = {}
    cost_weight: float = Field(default=0.0, ge=0.0)
    tenant_share: float = Field(default=0.0, ge=0.0)
    embeddings: bool = False
    steps: int = Field(default=2**18, ge=0, le=2**26)
    remembered: int = Field(default=4096, ge=1, le=1_000_000)
    drift_delta: Share = 0.05
    drift_reaction: float = Field(default=0.1, ge=0.0, le=1.0)
    error_halflife: Positive = 50.0

    @field_validator("embeddings")
    @classmethod
    def _are_installed(cls, value: bool) -> bool:
        if value:
            check_installed()
        return value

    def regressor(self) -> RegressorConfig:
        """Return the configuration of the regression."""
        bagged = self.exploration == "bag"
        return RegressorConfig(
            prior_mean=self.prior_mean,
            prior_variance=self.prior_variance,
            noise_share=self.noise_share,
            forgetting=self.forgetting[:1] * self.bags if bagged else self.forgetting,
            noisier=() if bagged else self.noisier,
            block=self.block,
            dense=self.dense,
            bootstrap=bagged,
        )
