"""Bayesian linear regression that follows change, and can take back what it learned: a River
regressor on sparse features.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from math import exp, factorial, fsum, inf, isfinite
from typing import Any

import numpy as np
from river import base

from learners.bandit.beliefs import LOOSE, TINY, UNMET, Beliefs, Floats, Integers, Reach, total
from learners.bandit.features import Features
from learners.bandit.steps import LEAST_NOISE, Step, carry, judged

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
        noisier: one number >= 1 for each further member. It expects so many times the noise, and
            forgets as the first member does. It learns slowly from features that it seldom met, so
            it predicts better where rewards are mostly chance.
        block: most features that share one covariance matrix, >= 1.
        dense: most features in all blocks together, >= 0; all others have a variance only.
        bootstrap: whether each member learns a random sample of the examples (online bagging; Oza &
            Russell, AISTATS 2001). Each example then counts Poisson(1) times.
    """

    prior_mean: float = 0.5
    prior_variance: float = 0.25
    noise_share: float = 0.7
    forgetting: tuple[float, ...] = (1e-5, 2e-3)
    noisier: tuple[float, ...] = ()
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
        if not all(1.0 <= times < inf for times in self.noisier):
            raise ValueError(f"noisier must be at least 1, got {self.noisier}")
        if self.block < 1 or self.dense < 0:
            raise ValueError(
                f"block must be at least 1 and dense at least 0, got {self.block} and {self.dense}"
            )

    @property
    def members(self) -> int:
        """E, how many learn side by side."""
        return len(self.forgetting) + len(self.noisier)


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

    `revise_step` takes an earlier example back, or changes its target, if what it moved is still
    known. `revise` estimates that from what is known now, in the time of one example.

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
        members, noisier = self.config.members, self.config.noisier
        self.examples = 0
        self.energy = 1.0
        self.errors: Floats = np.full(members, 0.1)
        self.evidence: Floats = np.zeros(members)
        self.shares: Floats = np.full(members, 1.0 / members)
        self.least = self.greatest = self.config.prior_mean
        self.beliefs = Beliefs(members, self.config.block, self.config.dense)
        forgetting = self.config.forgetting
        self._forgets: Floats = np.array([*forgetting, *forgetting[:1] * len(noisier)])[:, None]
        self._noises: Floats = self.config.noise_share * np.array(
            [1.0] * len(forgetting) + [*noisier]
        )

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
        """Take in one example and return self; see `take_step`."""
        self.take_step(x, y, w, key)
        return self

    def take_step(
        self, x: Features, y: float, w: float = 1.0, key: int | None = None
    ) -> Step | None:
        """Take in one example and return what it did; None if it has no features.

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
            return None
        # 2. Find the weights. A new feature gets one, with the prior's variance.
        self.energy += (max(1e-9, energy) - self.energy) / self.examples
        slots = self.beliefs.admit(x, self.prior, self.energy, self.examples)
        # 3. Forget a little, so that a change of the world can be followed.
        self.beliefs.fade(slots, self._forgets, self.energy)
        # 4. Predict, and see by how much each member is wrong.
        reach = self.beliefs.reach(slots, values)
        predicted = self.config.prior_mean + total(self.beliefs.means[:, slots] * values)
        # 5. Move the weights towards the target, the further the less is known of them.
        key = self.examples if key is None else key
        noise = self._noise(self.errors, w, key)
        step = self._noted(slots, values, reach, noise, predicted, y, key)
        self._step(reach, y - predicted, noise)
        self.beliefs.settle(slots, reach, noise)
        # 6. Give more say to members that were less wrong.
        self._judge([step])
        self.least, self.greatest = min(self.least, y), max(self.greatest, y)
        return step

    def revise_step(
        self, steps: Sequence[Step], moment: Moment, new: float | None, w: float = 1.0
    ) -> None:
        """Replace the target of a step, as if it had had the new one at once.

        The means are exactly what they would be if each later step had moved as far for its error
        as it did (see `carry`). One that is taken back counts as if its target had been what was
        predicted then. So what came next keeps the smaller gains that it had beside it; in return,
        what was forgotten because of many wrong targets in a row comes back. Variances are those of
        a belief that the example is taken out of, or put into: how much is left of it is estimated,
        as in `revise`.

        Args:
            steps: the step, and all later ones; they are changed.
            moment: when it was taken.
            new: the target that it has now; None takes it back.
            w: as it was taken.
        """
        first = steps[0]
        known, values = first.target is not None, first.values.astype(np.float64)
        if known != (new is not None):
            noise = self._noise_left(first.slots, values, moment, w, first.key)
            reach = self.beliefs.reach(first.slots, values)
            if known:
                prior = self.beliefs.prior_of(first.slots, values)
                self._widen(reach, _leverage(reach, noise, prior))
            else:
                self.beliefs.narrow(reach, noise + np.maximum(reach.variances, 0.0))
        self.beliefs.means += carry(steps, new, np.zeros_like(self.beliefs.means))
        self.errors, self.evidence = np.array(first.errors), np.array(first.evidence)
        self._judge(steps)
        if new is not None:
            self.least, self.greatest = min(self.least, new), max(self.greatest, new)

    def revise(
        self,
        x: dict[Any, float],
        moment: Moment,
        old: float | None,
        new: float | None,
        w: float = 1.0,
        key: int | None = None,
    ) -> bool:
        """Replace the target of an example whose step is not known any more; return whether it
        can have been learned.

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
        # 2. See how much of it is left.
        key = moment.example if key is None else key
        noise = self._noise_left(slots, values, moment, w, key)
        # 3. Take it out, put it in, or move its target.
        reach = self.beliefs.reach(slots, values)
        means = self.config.prior_mean + total(self.beliefs.means[:, slots] * values)
        if old is None and new is not None:
            self._step(reach, new - means, noise)
        elif old is not None and new is None:
            prior = self.beliefs.prior_of(slots, values)
            leverage = _leverage(reach, noise, prior)
            self._take_back(reach, old - means, means, leverage)
            self._widen(reach, leverage)
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
        noise: Floats = np.maximum(LEAST_NOISE, self._noises * errors) / w
        if self.config.bootstrap:
            noise = noise / np.maximum(_poisson(key, len(noise)), 1e-9)
        return noise

    def _step(self, reach: Reach, errors: Floats, noise: Floats) -> None:
        """Take one step of a Kalman filter."""
        spreads = noise + np.maximum(reach.variances, 0.0)
        self.beliefs.move(reach, errors / spreads)
        self.beliefs.narrow(reach, spreads)

    def _noted(
        self,
        slots: Integers,
        values: Floats,
        reach: Reach,
        noise: Floats,
        predicted: Floats,
        y: float,
        key: int,
    ) -> Step:
        moved, gains = self.beliefs.gains(reach, noise + np.maximum(reach.variances, 0.0))
        return Step(
            example=self.examples,
            key=key,
            slots=slots,
            values=values.astype(np.float32),
            moved=moved,
            gains=gains.astype(np.float16),
            target=y,
            predicted=predicted.tolist(),
            errors=self.errors.tolist(),
            evidence=self.evidence.tolist(),
        )

    def _noise_left(
        self, slots: Integers, values: Floats, moment: Moment, w: float, key: int
    ) -> Floats:
        """Return the noise of an earlier example: that of then, and greater by what was forgotten.

        Args:
            moment: when it was learned.
        """
        if moment.faded is None:
            before = self.beliefs.faded_until(slots, values, moment.example, self.examples)
        else:
            before = np.array(moment.faded)
        faded = np.maximum(0.0, self.beliefs.faded_of(slots, values) - before)
        noise = self._noise(np.array(moment.errors), w, key)
        left: Floats = noise * np.array([exp(min(MOST_FADED, one)) for one in faded.tolist()])
        return left

    def _take_back(self, reach: Reach, errors: Floats, means: Floats, leverage: Floats) -> None:
        """Undo what a step of a Kalman filter did to the means.

        The prediction stays within the range of all targets, also where the leverage is estimated
        too high.
        """
        wanted = means - errors * leverage / (1.0 - leverage)
        without = np.clip(wanted, np.minimum(self.least, means), np.maximum(self.greatest, means))
        self.beliefs.move(reach, (without - means) / np.maximum(reach.variances, TINY))

    def _widen(self, reach: Reach, leverage: Floats) -> None:
        """Undo what a step of a Kalman filter did to the covariances."""
        # Where nothing may be undone, nothing is added.
        variances = np.maximum(reach.variances, TINY)
        spreads = variances * (1.0 - leverage) / np.maximum(leverage, TINY)
        self.beliefs.narrow(reach, spreads, sign=-1.0)

    def _judge(self, steps: Sequence[Step]) -> None:
        """Note the errors of the members in steps, and give each member a share by them."""
        errors, evidence = judged(steps, self.errors.tolist(), self.evidence.tolist())
        self.errors, self.evidence = np.array(errors), np.array(evidence)
        self.heed()


def _leverage(reach: Reach, noise: Floats, prior: float) -> Floats:
    """Return h = v / noise, where v is the variance of a prediction, shape (E,), in [0, 1).

    Without the example, the variance is v / (1 - h). Where h is estimated too high, a limit holds:
    that variance stays below `prior`.
    """
    variances = np.maximum(reach.variances, TINY)
    most = np.maximum(0.0, 1.0 - variances / max(prior, TINY))
    leverage: Floats = np.minimum(variances / noise, most)
    return leverage


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
