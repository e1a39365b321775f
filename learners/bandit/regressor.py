"""Bayesian linear regression that follows change: a River regressor on sparse features."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from math import exp, factorial, fsum, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import base

from learners.bandit.features import Features

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEAST_NOISE = 1e-4
ERROR_RATE = 0.02
EVIDENCE_KEPT = 0.99
LOOSE = -1
UNMET = 0
FIRST_ROOM = 64


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


class Block:
    """The covariance of weights that were met together; E members.

    Attributes:
        slots: slots of its weights, in the order of rows and columns.
        covariances: shape (E, room, room), room >= number of slots; zero beyond them.
    """

    __slots__ = ("covariances", "slots")

    def __init__(self, members: int) -> None:
        self.slots: Integers = np.empty(0, dtype=np.int64)
        self.covariances: Floats = np.zeros((members, FIRST_ROOM, FIRST_ROOM))

    @property
    def width(self) -> int:
        """Number of weights in the block."""
        return len(self.slots)

    @property
    def filled(self) -> Floats:
        """Return the covariances without the empty room, shape (E, width, width); a view."""
        return self.covariances[:, : self.width, : self.width]

    def append(self, slots: Sequence[int] | Integers, covariances: Floats) -> None:
        """Add weights that are independent of the others; covariances of shape (E, n, n)."""
        old, new = self.width, self.width + len(slots)
        if new > self.covariances.shape[1]:
            room = max(new, 2 * self.covariances.shape[1])
            wide = np.zeros((len(self.covariances), room, room))
            wide[:, :old, :old] = self.filled
            self.covariances = wide
        self.slots = np.concatenate([self.slots, np.asarray(slots, dtype=np.int64)])
        self.covariances[:, old:new, old:new] = covariances


class BlockBayesianRegressor(base.Regressor):
    """Online linear regression on sparse features with a Gaussian belief about the weights.

    Each example is one step of a Kalman filter (Bishop, Pattern Recognition and Machine Learning,
    3.3), with a full covariance within blocks of features that occur together and none between
    them; what finds no room in a block has a variance only. Variances creep back to the prior, so
    that old examples count less and no weight is ever settled for good. Members that do so at
    different rates are averaged by how well each has predicted lately (dynamic model averaging;
    Raftery, Kárný & Ettler, Technometrics 2010): the regression follows a change without being told
    of it.

    Examples are taken in with plain IEEE arithmetic in a fixed order, without BLAS, so the same
    examples give the same weights bit for bit. Only deviations are computed with it: they matter
    for choosing, and choices are logged.

    Attributes:
        examples: how many there were.
        energy: mean squared norm of the features; the prior is for features of norm 1.
        errors: each member's recent squared error.
        evidence: each member's recent log-likelihood.
        shares: how much say each member has, shape (E,), for that; they sum to 1.
        features: the feature of each slot; slot 0 stands for all that were never met.
        means, variances: shape (E, room); variances of weights in no block.
        home, place: shape (room,); block of each slot, or -1, and its row there.

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
        self.features: list[int] = [-1]
        self.slot_of: dict[int, int] = {}
        self.means: Floats = np.zeros((members, FIRST_ROOM))
        self.variances: Floats = np.zeros((members, FIRST_ROOM))
        self.home: Integers = np.full(FIRST_ROOM, LOOSE)
        self.place: Integers = np.zeros(FIRST_ROOM, dtype=np.int64)
        self.blocks: dict[int, Block] = {}
        self.in_blocks = 0
        self.shares: Floats = np.full(members, 1.0 / members)
        self._forgets: Floats = np.array(self.config.forgetting)[:, None]

    @property
    def prior(self) -> float:
        """Variance of a weight that was never met."""
        return self.config.prior_variance / self.energy

    def weights(self) -> dict[int, float]:
        """Return each feature's weight: the members' means, by their shares."""
        met = len(self.features)
        means = _mixed(self.shares, self.means[:, 1:met]).tolist()
        return dict(zip(self.features[1:], means, strict=True))

    def predict_one(self, x: dict[Any, float]) -> float:
        """Return the mean of the prediction."""
        return self.predict_many([x])[0]

    def predict_many(self, examples: Sequence[Features]) -> list[float]:
        """Return the means of the predictions, in order."""
        counts = [len(x) for x in examples]
        if not all(counts):
            return [self.predict_many([x])[0] if x else self.config.prior_mean for x in examples]
        slots = [self.slot_of.get(index, UNMET) for x in examples for index in x]
        values = np.array([value for x in examples for value in x.values()])
        starts = np.cumsum([0, *counts[:-1]])
        weighted = _mixed(self.shares, self.means[:, slots]) * values
        predicted: list[float] = (
            self.config.prior_mean + np.add.reduceat(weighted, starts)
        ).tolist()
        return predicted

    def predict_members(self, examples: Sequence[Features]) -> Floats:
        """Return the prediction of each member, shape (E, K)."""
        predicted = [
            self.means[:, [self.slot_of.get(index, UNMET) for index in x]]
            @ np.array(list(x.values()))
            for x in examples
        ]
        return self.config.prior_mean + np.stack(predicted, axis=1)

    def deviations(self, examples: Sequence[Features]) -> list[float]:
        """Return the standard deviations of the predictions' means, without the reward's noise."""
        shares = self.shares
        found = []
        for x in examples:
            slots = np.array([self.slot_of.get(index, UNMET) for index in x], dtype=np.int64)
            values = np.array(list(x.values()))
            unmet = float((values[slots == UNMET] ** 2).sum()) * self.prior
            variances = (self.variances[:, slots] * values**2).sum(axis=1) + unmet
            for block_id in set(self.home[slots].tolist()) - {LOOSE}:
                here = self.home[slots] == block_id
                places, block = self.place[slots[here]], self.blocks[block_id]
                sub = block.covariances[:, places[:, None], places]
                variances += values[here] @ sub @ values[here]
            found.append(float(shares @ np.sqrt(np.maximum(variances, 0.0))))
        return found

    def learn_one(self, x: dict[Any, float], y: float, w: float = 1.0) -> "BlockBayesianRegressor":
        """Take in one example and return self.

        Args:
            w: how much it counts, > 0; 2 is about as if it came twice.

        Raises:
            ValueError: a number is not finite, or w is not positive; nothing was learned.
        """
        values = np.array(list(x.values()), dtype=float)
        energy = float(_total(values * values))
        if not isfinite(energy + y) or w <= 0:
            raise ValueError(
                f"features and target must be finite and the weight positive, got {x}, {y}, {w}"
            )
        self.examples += 1
        if not x:
            return self
        self.energy += (max(1e-9, energy) - self.energy) / self.examples
        slots = self._slots(x)
        means = _total(self.means[:, slots] * values)
        homes = self.home[slots]
        loose, loose_values = slots[homes == LOOSE], values[homes == LOOSE]
        loosened = self.variances[:, loose] + self._forgets * (
            self.prior - self.variances[:, loose]
        )
        loose_gains = loosened * loose_values
        variances = _total(loose_gains * loose_values)
        gains: dict[int, Floats] = {}
        for block_id in dict.fromkeys(homes.tolist()):
            if block_id != LOOSE:
                here, places = values[homes == block_id], self.place[slots[homes == block_id]]
                gains[block_id] = self._gains(self.blocks[block_id], places, here)
                variances += _total(gains[block_id][:, places] * here)
        errors = y - self.config.prior_mean - means
        noise = np.maximum(LEAST_NOISE, self.config.noise_share * self.errors) / w
        if self.config.bootstrap:
            noise = noise / np.maximum(_poisson(self.examples, len(noise)), 1e-9)
        spreads = (noise + np.maximum(variances, 0.0))[:, None]
        steps = errors[:, None] / spreads
        self.means[:, loose] += loose_gains * steps
        self.variances[:, loose] = loosened - loose_gains * loose_gains / spreads
        for block_id, gain in gains.items():
            block = self.blocks[block_id]
            self.means[:, block.slots] += gain * steps
            scaled = gain / np.sqrt(spreads)  # the square of one array is symmetric to the last bit
            covariances = block.filled
            covariances -= scaled[:, :, None] * scaled[:, None, :]
        squared = errors * errors
        self.evidence = EVIDENCE_KEPT * self.evidence - squared / (
            2.0 * max(float(self.errors[0]), LEAST_NOISE)
        )
        self.errors += max(ERROR_RATE, 1.0 / (self.examples + 5)) * (squared - self.errors)
        self.heed()
        return self

    def heed(self) -> None:
        """Give each member a share by its evidence."""
        odds = [exp(odd) for odd in (self.evidence - np.max(self.evidence)).tolist()]
        self.shares = np.array(odds) / fsum(odds)

    def loosen(self, share: float) -> None:
        """Move all variances towards the prior by a share in [0, 1], as after a change of the
        world.
        """
        self.variances[:, 1 : len(self.features)] += share * np.where(
            self.home[1 : len(self.features)] == LOOSE,
            self.prior - self.variances[:, 1 : len(self.features)],
            0.0,
        )
        for block in self.blocks.values():
            diagonal = np.einsum("eii->ei", block.filled)
            diagonal += share * np.maximum(self.prior - diagonal, 0.0)

    def _gains(self, block: Block, places: Integers, values: Floats) -> Floats:
        """Move a block's variances towards the prior; return covariance times features, shape (E,
        width).
        """
        covariances = block.filled
        diagonal = np.einsum("eii->ei", covariances)
        # Only upwards: a matrix whose diagonal shrinks may be no covariance any more.
        diagonal += self._forgets * np.maximum(self.prior - diagonal, 0.0)
        gains: Floats = np.add.accumulate(covariances[:, places] * values[:, None], axis=1)[:, -1]
        return gains

    def _slots(self, x: Features) -> Integers:
        """Return the slots of features.

        A new feature gets a slot. Blocks whose features occur together are joined if they fit into
        one.
        """
        slots = [self.slot_of.get(index, UNMET) for index in x]
        if UNMET in slots:
            homes = self._homes(slots)
            new = [index for index in x if index not in self.slot_of]
            for index in new:
                self.slot_of[index] = len(self.features)
                self.features.append(index)
            self._make_room()
            slots = [self.slot_of[index] for index in x]
            first = self.slot_of[new[0]]
            self._house(
                range(first, first + len(new)),
                homes[0] if homes else max(self.blocks, default=-1) + 1,
            )
        found = np.array(slots, dtype=np.int64)
        homes = self._homes(slots)
        for other in homes[1:]:
            if self.blocks[homes[0]].width + self.blocks[other].width <= self.config.block:
                self._into(homes[0], self.blocks[other].slots, self.blocks.pop(other).filled)
        return found

    def _homes(self, slots: Sequence[int]) -> list[int]:
        """Return the blocks that these slots lie in, in the order they are met."""
        return [home for home in dict.fromkeys(self.home[slots].tolist()) if home != LOOSE]

    def _house(self, slots: Sequence[int], block_id: int) -> None:
        """Put new weights into a block while there is room; the others keep a variance only."""
        taken = self.blocks[block_id].width if block_id in self.blocks else 0
        room = max(
            0, min(self.config.block - taken, self.config.dense - self.in_blocks, len(slots))
        )
        self.variances[:, slots] = self.prior
        if not room:
            return
        self.in_blocks += room
        members = len(self.config.forgetting)
        self._into(
            block_id,
            slots[:room],
            np.broadcast_to(np.eye(room) * self.prior, (members, room, room)),
        )

    def _into(self, block_id: int, slots: Sequence[int] | Integers, covariances: Floats) -> None:
        block = self.blocks.setdefault(block_id, Block(len(self.config.forgetting)))
        self.home[slots] = block_id
        self.place[slots] = np.arange(block.width, block.width + len(slots))
        self.variances[:, slots] = 0.0
        block.append(slots, covariances)

    def _make_room(self) -> None:
        """Double the arrays until each feature has its slot."""
        while len(self.home) < len(self.features):
            self.means = np.concatenate([self.means, np.zeros_like(self.means)], axis=1)
            self.variances = np.concatenate([self.variances, np.zeros_like(self.variances)], axis=1)
            self.home = np.concatenate([self.home, np.full_like(self.home, LOOSE)])
            self.place = np.concatenate([self.place, np.zeros_like(self.place)])

    def restore(self, features: Sequence[int], means: Floats, variances: Floats) -> None:
        """Restore weights that are in no block yet; arrays of shape (E, n)."""
        self.features += features
        self.slot_of = {index: slot for slot, index in enumerate(self.features) if slot != UNMET}
        self._make_room()
        self.means[:, 1 : len(self.features)], self.variances[:, 1 : len(self.features)] = (
            means,
            variances,
        )

    def restore_block(self, block_id: int, slots: Sequence[int], covariances: Floats) -> None:
        """Restore a block; covariances of shape (E, n, n)."""
        self.in_blocks += len(slots)
        self._into(block_id, slots, covariances)


def _poisson(example: int, members: int) -> Floats:
    """Return how often an example counts for each member: Poisson(1), fixed for each example."""
    counts = []
    for member in range(members):
        digest = blake2b(example.to_bytes(8) + member.to_bytes(2), digest_size=8).digest()
        counts.append(bisect_right(_POISSON, int.from_bytes(digest) / 2**64))
    return np.array(counts, dtype=float)


_POISSON = tuple(accumulate(exp(-1.0) / factorial(count) for count in range(12)))


def _mixed(shares: Floats, means: Floats) -> Floats:
    """Return the members' means weighted by their shares, added from first to last."""
    mixed: Floats = np.add.accumulate(shares[:, None] * means, axis=0)[-1]
    return mixed


def _total(terms: Floats) -> Floats:
    """Return the sum over the last axis, added from first to last.

    NumPy's own sum changes the order with the array's size, which would change the last bits.
    """
    if not terms.shape[-1]:
        return np.zeros(terms.shape[:-1])
    total: Floats = np.add.accumulate(terms, axis=-1)[..., -1]
    return total
