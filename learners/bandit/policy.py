"""The bandit's policy, which the gateway serves, and its form as an artifact."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from operator import mul
from typing import Any, ClassVar, get_args

import numpy as np
import orjson

from learners.bandit.exploration import Exploration, bag, greedy, squarecb, thompson, with_floor
from learners.bandit.features import FEATURE_VERSION, Features, features
from learners.bandit.regressor import BlockBayesianRegressor
from learners.bandit.serialization import (
    finite,
    packed,
    regressor_from_json,
    regressor_to_json,
    unpacked,
)
from schemas.decisions import Candidate

MEDIA_TYPE = "application/vnd.everloop.bandit+json"


@dataclass(frozen=True)
class Weights:
    """The beliefs of a regression without their uncertainty. `squarecb` and `epsilon` need no more.

    Attributes:
        centre: prediction without features.
        by_feature: weight of each feature.
    """

    centre: float
    by_feature: dict[int, float]

    @classmethod
    def of(cls, regressor: BlockBayesianRegressor) -> "Weights":
        """Return the present weights of a regressor."""
        return cls(regressor.config.prior_mean, regressor.weights())

    def predict_many(self, examples: Sequence[Features]) -> list[float]:
        """Return the predictions, in order."""
        weight = self.by_feature.get
        return [
            self.centre + fsum(map(mul, [weight(index, 0.0) for index in x], x.values()))
            for x in examples
        ]


@dataclass
class BanditPolicy:
    """Chooses by the expected rewards of the candidates, minus their stated costs.

    Args:
        beliefs: a whole regressor for `thompson` and `bag`, which need the uncertainty; else
            weights.
        greed: gamma of `squarecb`; divisor of the standard deviations in `thompson`.
        epsilon: share of uniform exploration, in (0, 1].
        cost_weight: reward that one unit of a candidate's cost is worth, >= 0.
        tenant_share: see `features`.
    """

    media_type: ClassVar[str] = MEDIA_TYPE

    beliefs: Weights | BlockBayesianRegressor
    exploration: Exploration
    greed: float
    epsilon: float
    cost_weight: float = 0.0
    tenant_share: float = 0.0
    feature_version: int = FEATURE_VERSION

    def probabilities(
        self, context: str, candidates: Sequence[Candidate], tenant: str = ""
    ) -> list[float]:
        """Return the probability of each candidate, in their order."""
        found = features(context, candidates, tenant, self.tenant_share)
        costs = [self.cost_weight * (candidate.cost or 0.0) for candidate in candidates]
        means = [
            mean - cost for mean, cost in zip(self.beliefs.predict_many(found), costs, strict=True)
        ]
        if self.exploration == "squarecb":
            chances = squarecb(means, self.greed)
        elif self.exploration == "epsilon":
            chances = greedy(means)
        else:
            # `from_bytes` refuses other beliefs.
            assert isinstance(self.beliefs, BlockBayesianRegressor)  # noqa: S101
            if self.exploration == "bag":
                chances = bag(self.beliefs.predict_members(found) - np.array(costs))
            else:
                chances = thompson(
                    np.array(means), np.array(self.beliefs.deviations(found)) / self.greed
                )
        return with_floor(chances, self.epsilon)

    def to_bytes(self) -> bytes:
        """Return the policy as JSON; equal policies give equal bytes."""
        return orjson.dumps(
            {
                "exploration": self.exploration,
                "greed": self.greed,
                "epsilon": self.epsilon,
                "cost_weight": self.cost_weight,
                "tenant_share": self.tenant_share,
                "feature_version": self.feature_version,
                "beliefs": _beliefs_to_json(self.beliefs),
            },
            option=orjson.OPT_SORT_KEYS,
        )

    @classmethod
    def load(cls, content: bytes) -> "BanditPolicy":
        """Return the policy that `to_bytes` wrote; as `from_bytes`."""
        return cls.from_bytes(content)

    @classmethod
    def from_bytes(cls, value: bytes) -> "BanditPolicy":
        """Return the policy that `to_bytes` wrote.

        Raises:
            ValueError: it is not a bandit policy, is damaged, or was made for features that this
                program does not compute.
        """
        try:
            document = orjson.loads(value)
            version = document["feature_version"]
            if version != FEATURE_VERSION:
                raise ValueError(
                    f"the policy reads features of version {version}, this program computes"
                    f" {FEATURE_VERSION}"
                )
            if document["exploration"] not in get_args(Exploration):
                raise ValueError(f"unknown exploration {document['exploration']!r}")
            beliefs = _beliefs_from_json(document["beliefs"])
            if document["exploration"] in ("thompson", "bag") and isinstance(beliefs, Weights):
                raise ValueError(
                    f"{document['exploration']} must know how sure the beliefs are; it has"
                    " weights alone"
                )
            return cls(
                beliefs,
                document["exploration"],
                float(document["greed"]),
                float(document["epsilon"]),
                float(document["cost_weight"]),
                float(document["tenant_share"]),
            )
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"not a bandit policy: {error!r}") from error


def _beliefs_to_json(beliefs: Weights | BlockBayesianRegressor) -> dict[str, Any]:
    if isinstance(beliefs, BlockBayesianRegressor):
        return {"regressor": regressor_to_json(beliefs)}
    return {
        "centre": beliefs.centre,
        "features": packed(list(beliefs.by_feature), "<u4"),
        "weights": packed(list(beliefs.by_feature.values()), "<f8"),
    }


def _beliefs_from_json(document: dict[str, Any]) -> Weights | BlockBayesianRegressor:
    if "regressor" in document:
        return regressor_from_json(document["regressor"])
    indices, weights = (
        unpacked(document["features"], "<u4").tolist(),
        finite(document["weights"]).tolist(),
    )
    return Weights(float(document["centre"]), dict(zip(indices, weights, strict=True)))
