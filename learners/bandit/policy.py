"""The bandit's policy: what the gateway serves, and its form as an artifact."""

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from learners.bandit.exploration import choice_probabilities
from learners.bandit.features import FEATURE_VERSION, features
from learners.bandit.regressor import DiagonalBayesianRegressor
from schemas.decisions import Candidate

MEDIA_TYPE = "application/vnd.everloop.bandit+json"


@dataclass
class BanditPolicy:
    """Chooses by the believed rewards of the candidates.

    Args:
        gamma, epsilon: see `choice_probabilities`.
    """

    regressor: DiagonalBayesianRegressor
    gamma: float
    epsilon: float
    feature_version: int = FEATURE_VERSION

    def probabilities(self, context: str, candidates: Sequence[Candidate]) -> list[float]:
        """Return the probability of each candidate, in their order."""
        rewards = [self.regressor.predict_one(features(context, candidate)) for candidate in candidates]
        return choice_probabilities(rewards, self.gamma, self.epsilon)

    def to_bytes(self) -> bytes:
        """Return the policy as JSON; equal policies give equal bytes."""
        return orjson.dumps(
            {
                "epsilon": self.epsilon,
                "gamma": self.gamma,
                "feature_version": self.feature_version,
                "regressor": regressor_to_json(self.regressor),
            },
            option=orjson.OPT_SORT_KEYS,
        )

    @classmethod
    def from_bytes(cls, value: bytes) -> "BanditPolicy":
        """Return the policy that `to_bytes` wrote.

        Raises:
            ValueError: it is none, is damaged, or was made for features this program does not compute.
        """
        try:
            document = orjson.loads(value)
            version = document["feature_version"]
            regressor = regressor_from_json(document["regressor"])
            gamma, epsilon = float(document["gamma"]), float(document["epsilon"])
        except (KeyError, TypeError, zlib.error) as error:
            raise ValueError(f"not a bandit policy: {error!r}") from error
        if version != FEATURE_VERSION:
            raise ValueError(f"the policy reads features of version {version}, this program computes {FEATURE_VERSION}")
        return cls(regressor, gamma, epsilon, version)


def regressor_to_json(regressor: DiagonalBayesianRegressor) -> dict[str, Any]:
    """Return a regressor as JSON; weights are compressed little-endian arrays in base64, exact to the bit."""
    indices, means, variances = (base64.b64encode(zlib.compress(part)).decode() for part in regressor.weights())
    return {
        "noise_variance": regressor.noise_variance,
        "prior_variance": regressor.prior_variance,
        "indices": indices,
        "means": means,
        "variances": variances,
    }


def regressor_from_json(document: dict[str, Any]) -> DiagonalBayesianRegressor:
    """Return the regressor that `regressor_to_json` wrote."""
    regressor = DiagonalBayesianRegressor(document["noise_variance"], document["prior_variance"])
    regressor.load(*(zlib.decompress(base64.b64decode(document[part])) for part in ("indices", "means", "variances")))
    return regressor
