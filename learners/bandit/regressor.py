"""Bayesian linear regression with a diagonal posterior, as a River regressor on sparse features."""

from array import array
from typing import Any

from river import base

from learners.bandit.features import BIAS

_BIAS_VARIANCE = 1.0


class DiagonalBayesianRegressor(base.Regressor):
    """Online linear regression on sparse features with a Gaussian belief per weight.

    The exact posterior of Bayesian linear regression (Bishop, Pattern Recognition and Machine Learning, 3.3) with its
    covariance kept diagonal after each step, which is one Kalman update per example at the cost of its non-zeros.

    All arithmetic is plain IEEE additions, multiplications and divisions in a fixed order, so the same examples give
    the same weights bit for bit on every machine.

    Args:
        noise_variance: of the reward around its mean, > 0.
        prior_variance: of each weight before it is seen, > 0.

    Examples:
        >>> model = DiagonalBayesianRegressor()
        >>> for _ in range(50):
        ...     _ = model.learn_one({1: 1.0}, 1.0).learn_one({2: 1.0}, 0.0)
        >>> model.predict_one({1: 1.0}) > 0.9 > 0.1 > model.predict_one({2: 1.0})
        True
    """

    def __init__(self, noise_variance: float = 0.05, prior_variance: float = 0.1) -> None:
        if noise_variance <= 0 or prior_variance <= 0:
            raise ValueError(f"variances must be positive, got {noise_variance} and {prior_variance}")
        self.noise_variance = noise_variance
        self.prior_variance = prior_variance
        self.means: dict[int, float] = {}
        self.variances: dict[int, float] = {}

    def predict_one(self, x: dict[Any, float]) -> float:
        """Return the mean of the prediction."""
        total = 0.0
        for index, value in x.items():
            total += self.means.get(index, 0.0) * value
        return total

    def variance_one(self, x: dict[Any, float]) -> float:
        """Return the variance of the prediction's mean (without the reward's own noise)."""
        total = 0.0
        for index, value in x.items():
            total += self._variance(index) * value * value
        return total

    def learn_one(self, x: dict[Any, float], y: float) -> "DiagonalBayesianRegressor":
        """Take in one example and return self."""
        error = y - self.predict_one(x)
        spread = self.noise_variance + self.variance_one(x)
        for index, value in x.items():
            variance = self._variance(index)
            gain = variance * value / spread
            self.means[index] = self.means.get(index, 0.0) + gain * error
            self.variances[index] = variance - gain * variance * value
        return self

    def _variance(self, index: int) -> float:
        return self.variances.get(index, _BIAS_VARIANCE if index == BIAS else self.prior_variance)

    def weights(self) -> tuple[bytes, bytes, bytes]:
        """Return indices (uint32), means and variances (float64) in little-endian order, sorted by index."""
        indices = sorted(self.means)
        return (
            _bytes("I", indices),
            _bytes("d", [self.means[index] for index in indices]),
            _bytes("d", [self.variances[index] for index in indices]),
        )

    def load(self, indices: bytes, means: bytes, variances: bytes) -> None:
        """Take over what `weights` returned.

        Raises:
            ValueError: the three differ in length, or hold a number that is not finite.
        """
        keys, values, spreads = _numbers("I", indices), _numbers("d", means), _numbers("d", variances)
        if not len(keys) == len(values) == len(spreads):
            raise ValueError(f"{len(keys)} indices, {len(values)} means, {len(spreads)} variances")
        if any(value != value or abs(value) == float("inf") for value in (*values, *spreads)):
            raise ValueError("weights are not finite")
        self.means = dict(zip(keys, values, strict=True))
        self.variances = dict(zip(keys, spreads, strict=True))


def _bytes(code: str, numbers: list[Any]) -> bytes:
    packed = array(code, numbers)
    if _BIG_ENDIAN:
        packed.byteswap()
    return packed.tobytes()


def _numbers(code: str, value: bytes) -> list[Any]:
    packed = array(code)
    packed.frombytes(value)
    if _BIG_ENDIAN:
        packed.byteswap()
    return packed.tolist()


_BIG_ENDIAN = array("H", [1]).tobytes() == b"\x00\x01"
