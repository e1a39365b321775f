"""The bandit's policy, which the gateway serves, and its form as an artifact."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import fsum
from operator import mul
from typing import Any, ClassVar, get_args

import numpy as np
import orjson

from learners.bandit import embeddings, features_before
from learners.bandit.arrays import finite, packed, unpacked
from learners.bandit.exploration import Exploration, bag, greedy, squarecb, thompson, with_floor
from learners.bandit.features import (
    BITS,
    EMBEDDED_VERSION,
    FEATURE_VERSION,
    Features,
    features,
    names_of,
    slate_of,
)
from learners.bandit.regressor import BlockBayesianRegressor
from learners.bandit.serialization import (
    regressor_from_json,
    regressor_to_json,
    vocabulary_from_json,
    vocabulary_to_json,
)
from learners.bandit.slates import Floats, Slate
from learners.bandit.vocabulary import Vocabulary
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

    @cached_property
    def _dense(self) -> Floats:
        """The weights as an array, so that large slates are scored fast."""
        dense = np.zeros(1 << BITS)
        dense[list(self.by_feature)] = list(self.by_feature.values())
        return dense

    def predict_slate(self, slate: Slate) -> list[float]:
        """Return the prediction for each candidate."""
        return [self.centre + score for score in slate.scores(self._dense)]

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
        tenant_share: see `slate_of`.
        feature_version: version of the features that the beliefs are about.
        vocabulary: see `slate_of`.
    """

    media_type: ClassVar[str] = MEDIA_TYPE

    beliefs: Weights | BlockBayesianRegressor
    exploration: Exploration
    greed: float
    epsilon: float
    cost_weight: float = 0.0
    tenant_share: float = 0.0
    feature_version: int = FEATURE_VERSION
    vocabulary: Vocabulary = field(default_factory=Vocabulary)

    def probabilities(
        self, context: str, candidates: Sequence[Candidate], tenant: str = ""
    ) -> list[float]:
        """Return the probability of each candidate, in their order."""
        costs = [self.cost_weight * (candidate.cost or 0.0) for candidate in candidates]
        if self._is_present and isinstance(self.beliefs, Weights):
            asked = context, candidates, tenant, self.tenant_share, self.vocabulary
            slate = slate_of(*asked, self._meaning(context))
            believed, found = self.beliefs.predict_slate(slate), []
        else:
            found = self.features(context, candidates, tenant)
            believed = self.beliefs.predict_many(found)
        means = [mean - cost for mean, cost in zip(believed, costs, strict=True)]
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

    def features(
        self, context: str, candidates: Sequence[Candidate], tenant: str = ""
    ) -> list[Features]:
        """Return the features of each candidate, of the policy's own version."""
        if self._is_present:
            asked = context, candidates, tenant, self.tenant_share, self.vocabulary
            return features(*asked, self._meaning(context))
        version, share = self.feature_version, self.tenant_share
        return features_before.features(version, context, candidates, tenant, share)

    def names_of(
        self, context: str, candidates: Sequence[Candidate], tenant: str = ""
    ) -> dict[int, str]:
        """Return what the features of these candidates stand for."""
        if self._is_present:
            dimensions = embeddings.DIMENSIONS if self._embeds else 0
            return names_of(context, candidates, tenant, self.vocabulary, dimensions)
        return features_before.names_of(self.feature_version, context, candidates, tenant)

    @property
    def _embeds(self) -> bool:
        return self.feature_version == EMBEDDED_VERSION

    @property
    def _is_present(self) -> bool:
        """Whether it reads the features that are learned now."""
        return self.feature_version in (FEATURE_VERSION, EMBEDDED_VERSION)

    def _meaning(self, context: str) -> Floats | None:
        return embeddings.embedding(context) if self._embeds else None

    def to_bytes(self) -> bytes:
        """Return the policy as JSON; equal policies give equal bytes."""
        vocabulary = vocabulary_to_json(self.vocabulary)
        return orjson.dumps(
            {
                **({"vocabulary": vocabulary} if self._is_present else {}),
                **({"embeddings": embeddings.MODEL} if self._embeds else {}),
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
            ValueError: it is not a bandit policy, is damaged, or reads features of a version, or
                embeddings of a model, that this program does not compute. Versions 2 and 3 are
                still computed for the policies that read them.
        """
        try:
            document = orjson.loads(value)
            version = document["feature_version"]
            if version not in (*features_before.TOKENS, FEATURE_VERSION, EMBEDDED_VERSION):
                raise ValueError(
                    f"the policy reads features of version {version}, this program computes"
                    f" {min(features_before.TOKENS)} to {EMBEDDED_VERSION}"
                )
            if version == EMBEDDED_VERSION:
                embeddings.load(document["embeddings"])
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
                version,
                vocabulary_from_json(document["vocabulary"])
                if version in (FEATURE_VERSION, EMBEDDED_VERSION)
                else Vocabulary(),
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
