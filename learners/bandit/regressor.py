"""Bayesian linear regression that follows change, and can take back what it learned: a River
regressor on sparse features.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from math import exp, factorial, fsum, isfinite
from typing import Any

import numpy as np
from river import base

from learners.bandit.beliefs import LOOSE, TINY, UNMET, Beliefs, Floats, Reach, total
from learners.bandit.features import Features

LEAST_NOISE = 1e-4
ERROR_RATE = 0.02
EVIDENCE_KEPT = 0.99
MOST_FADED = 100.0


@dataclass(frozen=True)
class RegressorConfig:
    """Settings of a `BlockBayesianRegressor`.

    Attributes:
        prior_mean: prediction for features that were never met. It is not learned: with the mean
            reward in its place, a candidate that was never tried would look as good as one that is
            chosen because it is the best.
        prior_variance: of each weight before it is seen, > 0.
        noise_share: variance of the reward's noise as a share of the recent squared error, > 0.
        forgetting: one number in (0, 1) for each member: the share by which the variance of a
            weight returns to the prior whenever the weight is met. Small shares remember, large
            ones follow change. Members that predict well weigh more.
        block: most features that share one covariance matrix, >= 1.
        dense: most features in all blocks together, >= 0; all others have a variance only.
        bootstrap: whether each member learns a random sample of the examples (online bagging; Oza &
            Russell, AISTATS 2001). Each example then counts Poisson(1) times.
    """

    prior_mean: float = 0.5
    prior_variance: float = 0.25
    noise_share: float = 0.7
    forgetting: tuple[float, ...] = (1e-5, 2e-3)
    block: int = 96
    dense: int = 768
    bootstrap: bool = False

    def __post_init__(self) -> None:
        if self.prior_variance <= 0 or self.noise_share <= 0:
            raise ValueError(
                f"variances must be positive, got {self.prior_variance} and {self.noise_share}"
            )
        if not self.forgetting or not all(0.0 < share < 1.0 for share in self.forgetting):
            raise ValueError(f"forgetting must be between 0 and 1, got {self.forgetting}")
        if self.block < 1 or self.dense < 0:
            raise ValueError(
                f"block must be at least 1 and dense at least 0, got {self.block} and {self.dense}"
            )


@dataclass(frozen=True)
class Moment:
    """Where an example stands among all, and what the members then thought of its noise.

    Attributes:
        example: its number, >= 1.
        errors: recent squared error of each member before it.
        faded: see `Beliefs.faded_of`, before it; None where that is not known any more.
    """

    example: int
    errors: tuple[float, ...]
    faded: tuple[float, ...] | None = None


class BlockBayesianRegressor(base.Regressor):
    """Online linear regression on sparse features with a Gaussian belief about the weights.

    Each example is one step of a Kalman filter (Bishop, Pattern Recognition and Machine Learning,
    3.3), with a full covariance within blocks of features that occur together and none between
    them; what finds no room in a block has a variance only. Variances creep back to what they were
    at first, so that old examples count less and no weight is ever settled for good. Members that
    do so at different rates are averaged by how well each has predicted lately (dynamic model
    averaging; Raftery, Kárný & Ettler, Technometrics 2010): the regression follows a change without
    being told of it.

    Examples are taken in with plain IEEE arithmetic in a fixed order, without BLAS, so the same
    examples give the same weights bit for bit. Only deviations are computed with it: they matter
    for choosing, and choices are logged.

    `revise` takes an earlier example back, or changes its target, in the time of one example.

    Attributes:
        examples: how many were taken in; those taken back count.
        energy: mean squared norm of the features; the prior is for features of norm 1.
        errors: each member's recent squared error.
        evidence: each member's recent log-likelihood.
        shares: how much say each member has, shape (E,), for that; they sum to 1.
        least, greatest: of all targets.
        beliefs: about the weights.

    Examples:
        >>> model = BlockBayesianRegressor()
        >>> for _ in range(50):
        ...     _ = model.learn_one({1: 1.0}, 1.0).learn_one({2: 1.0}, 0.0)
        >>> model.predict_one({1: 1.0}) > 0.9 > 0.1 > model.predict_one({2: 1.0})
        True
    """

    def __init__(self, config: RegressorConfig | None = None) -> None:
        self.config = config or RegressorConfig()
        members = len(self.config.forgetting)
        self.examples = 0
        self.energy = 1.0
        self.errors: Floats = np.full(members, 0.1)
        self.evidence: Floats = np.zeros(members)
        self.shares: Floats = np.full(members, 1.0 / members)
        self.least = self.greatest = self.config.prior_mean
        self.beliefs = Beliefs(members, self.config.block, self.config.dense)
        self._forgets: Floats = np.array(self.config.forgetting)[:, None]

    @property
    def prior(self) -> float:
        """Variance of a weight that was never met."""
        return self.config.prior_variance / self.energy

    def weights(self) -> dict[int, float]:
        """Return each feature's weight: the members' means, by their shares."""
        met = len(self.beliefs.features)
        means = _mixed(self.shares, self.beliefs.means[:, 1:met]).tolist()
        return dict(zip(self.beliefs.features[1:], means, strict=True))

    def predict_one(self, x: dict[Any, float]) -> float:
        """Return the mean of the prediction."""
        return self.predict_many([x])[0]

    def predict_many(self, examples: Sequence[Features]) -> list[float]:
        """Return the means of the predictions, in order."""
        counts = [len(x) for x in examples]
        if not all(counts):
            return [self.predict_many([x])[0] if x else self.config.prior_mean for x in examples]
        slot_of = self.beliefs.slot_of
        slots = [slot_of.get(index, UNMET) for x in examples for index in x]
        values = np.array([value for x in examples for value in x.values()])
        starts = np.cumsum([0, *counts[:-1]])
        weighted = _mixed(self.shares, self.beliefs.means[:, slots]) * values
        predicted: list[float] = (
            self.config.prior_mean + np.add.reduceat(weighted, starts)
        ).tolist()
        return predicted

    def predict_members(self, examples: Sequence[Features]) -> Floats:
        """Return the prediction of each member, shape (E, K)."""
        predicted = [
            self.beliefs.means[:, self.beliefs.slots(x)] @ np.array(list(x.values()))
            for x in examples
        ]
        return self.config.prior_mean + np.stack(predicted, axis=1)

    def deviations(self, examples: Sequence[Features]) -> list[float]:
        """Return the standard deviations of the predictions' means, without the reward's noise."""
        beliefs, found = self.beliefs, []
        for x in examples:
            slots, values = beliefs.slots(x), np.array(list(x.values()))
            unmet = float((values[slots == UNMET] ** 2).sum()) * self.prior
            variances = (beliefs.variances[:, slots] * values**2).sum(axis=1) + unmet
            for block_id in set(beliefs.home[slots].tolist()) - {LOOSE}:
                here = beliefs.home[slots] == block_id
                places, block = beliefs.place[slots[here]], beliefs.blocks[block_id]
                sub = block.covariances[:, places[:, None], places]
                variances += values[here] @ sub @ values[here]
            found.append(float(self.shares @ np.sqrt(np.maximum(variances, 0.0))))
        return found

    def learn_one(
        self, x: dict[Any, float], y: float, w: float = 1.0, key: int | None = None
    ) -> "BlockBayesianRegressor":
        """Take in one example and return self.

        Args:
            w: how much it counts, > 0; 2 is about as if it came twice.
            key: decides which members of a bootstrap learn it; the number of the example if None.

        Raises:
            ValueError: a number is not finite, or w is not positive; nothing was learned.
        """
        # 1. Refuse what would spoil the weights.
        values = np.array(list(x.values()), dtype=float)
        energy = float(total(values * values))
        if not isfinite(energy + y) or w <= 0:
            raise ValueError(
                f"features and target must be finite and the weight positive, got {x}, {y}, {w}"
            )
        self.examples += 1
        if not x:
            return self
        # 2. Find the weights. A new feature gets one, with the prior's variance.
        self.energy += (max(1e-9, energy) - self.energy) / self.examples
        slots = self.beliefs.admit(x, self.prior, self.energy, self.examples)
        # 3. Forget a little, so that a change of the world can be followed.
        self.beliefs.fade(slots, self._forgets, self.energy)
        # 4. Predict, and see by how much each member is wrong.
        reach = self.beliefs.reach(slots, values)
        errors = y - self.config.prior_mean - total(self.beliefs.means[:, slots] * values)
        # 5. Move the weights towards the target, the further the less is known of them.
        noise = self._noise(self.errors, w, self.examples if key is None else key)
        self._step(reach, errors, noise)
        self.beliefs.settle(slots, reach, noise)
        # 6. Give more say to members that were less wrong.
        self._judge(errors * errors)
        self.least, self.greatest = min(self.least, y), max(self.greatest, y)
        return self

    def revise(
        self,
        x: dict[Any, float],
        moment: Moment,
        old: float | None,
        new: float | None,
        w: float = 1.0,
        key: int | None = None,
    ) -> bool:
        """Replace the target of an example that was learned before; return whether it can have
        been.

        A Gaussian belief is a sum over examples, so one of them can be taken out of the sum again,
        or be put into it (in the information form of the Kalman filter the precision is a sum of
        x xᵀ / noise, and the mean times the precision a sum of x y / noise). That is exact where
        nothing was forgotten since. What was forgotten of the example is estimated (see
        `Beliefs.settle`), and what it did to the noise and the shares of the members stays.

        Args:
            moment: when it was learned.
            old: the target that it had; None if it was taken back before.
            new: the target that it has now; None takes it back.
            w, key: as it was learned.
        """
        # 1. Find the weights. Features that were never met were not in the example.
        slots, values = self.beliefs.slots(x), np.array(list(x.values()), dtype=float)
        slots, values = slots[slots != UNMET], values[slots != UNMET]
        if not len(slots):
            return False
        # 2. See how much of it is left: its noise is that of then, and greater by what was
        # forgotten.
        if moment.faded is None:
            before = self.beliefs.faded_until(slots, values, moment.example, self.examples)
        else:
            before = np.array(moment.faded)
        faded = np.maximum(0.0, self.beliefs.faded_of(slots, values) - before)
        noise = self._noise(np.array(moment.errors), w, moment.example if key is None else key)
        noise = noise * np.array([exp(min(MOST_FADED, one)) for one in faded.tolist()])
        # 3. Take it out, put it in, or move its target.
        reach = self.beliefs.reach(slots, values)
        means = self.config.prior_mean + total(self.beliefs.means[:, slots] * values)
        if old is None and new is not None:
            self._step(reach, new - means, noise)
        elif old is not None and new is None:
            prior = self.beliefs.prior_of(slots, values)
            self._take_back(reach, old - means, means, noise, prior)
        elif old is not None and new is not None:
            # No step may exceed the difference: an example is at most all that is known.
            self.beliefs.move(reach, (new - old) / np.maximum(noise, reach.variances))
        if new is not None:
            self.least, self.greatest = min(self.least, new), max(self.greatest, new)
        return True

    def moment(self, x: Features) -> Moment:
        """Return what `revise` must know of an example that is learned next."""
        slots, values = self.beliefs.slots(x), np.array(list(x.values()), dtype=float)
        faded = self.beliefs.faded_of(slots, values)
        return Moment(self.examples + 1, tuple(self.errors.tolist()), tuple(faded.tolist()))

    def loosen(self, share: float) -> None:
        """Move all variances towards their priors by a share in [0, 1], as after a change of
        the world.
        """
        self.beliefs.fade_all(share, self.energy)

    def heed(self) -> None:
        """Give each member a share by its evidence."""
        odds = [exp(odd) for odd in (self.evidence - np.max(self.evidence)).tolist()]
        self.shares = np.array(odds) / fsum(odds)

    def _noise(self, errors: Floats, w: float, key: int) -> Floats:
        """Return the noise that each member expects of a reward, shape (E,)."""
        noise: Floats = np.maximum(LEAST_NOISE, self.config.noise_share * errors) / w
        if self.config.bootstrap:
            noise = noise / np.maximum(_poisson(key, len(noise)), 1e-9)
        return noise

    def _step(self, reach: Reach, errors: Floats, noise: Floats) -> None:
        """Take one step of a Kalman filter."""
        spreads = noise + np.maximum(reach.variances, 0.0)
        self.beliefs.move(reach, errors / spreads)
        self.beliefs.narrow(reach, spreads)

    def _take_back(
        self, reach: Reach, errors: Floats, means: Floats, noise: Floats, prior: float
    ) -> None:
        """Undo a step of a Kalman filter.

        Without the example, the prediction for it has the variance v / (1 - h), with the leverage
        h = v / noise. Two limits hold where h is estimated too high: that variance stays below
        `prior`, and the prediction within the range of all targets.
        """
        variances = np.maximum(reach.variances, TINY)
        most = np.maximum(0.0, 1.0 - variances / max(prior, TINY))
        leverage = np.minimum(variances / noise, most)
        wanted = means - errors * leverage / (1.0 - leverage)
        without = np.clip(wanted, np.minimum(self.least, means), np.maximum(self.greatest, means))
        self.beliefs.move(reach, (without - means) / variances)
        # Where nothing may be undone, nothing is added.
        spreads = variances * (1.0 - leverage) / np.maximum(leverage, TINY)
        self.beliefs.narrow(reach, spreads, sign=-1.0)

    def _judge(self, squared: Floats) -> None:
        """Note the squared errors of the members, and give each a share by them."""
        self.evidence = EVIDENCE_KEPT * self.evidence - squared / (
            2.0 * max(float(self.errors[0]), LEAST_NOISE)
        )
        self.errors += max(ERROR_RATE, 1.0 / (self.examples + 5)) * (squared - self.errors)
        self.heed()


def _poisson(key: int, members: int) -> Floats:
    """Return how often an example counts for each member: Poisson(1), fixed for each key."""
    counts = []
    for member in range(members):
        digest = blake2b(key.to_bytes(8) + member.to_bytes(2), digest_size=8).digest()
        counts.append(bisect_right(_POISSON, int.from_bytes(digest) / 2**64))
    return np.array(counts, dtype=float)


_POISSON = tuple(accumulate(exp(-1.0) / factorial(count) for count in range(12)))


def _mixed(shares: Floats, means: Floats) -> Floats:
    """Return the members' means weighted by their shares, added from first to last."""
    mixed: Floats = np.add.accumulate(shares[:, None] * means, axis=0)[-1]
    return mixed
