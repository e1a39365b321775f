"""A Gaussian belief about the weights of sparse features: which block each lies in, what is known
of it, and how much of that was forgotten.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from learners.bandit.features import Features

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LOOSE = -1
UNMET = 0
FIRST_ROOM = 64
TINY = 1e-300
BY_MEMBER = ("means", "variances", "spreads", "faded", "dropped")
"""Arrays of `Beliefs` of shape (E, room)."""
BY_WEIGHT = ("since", "priors")
"""Arrays of `Beliefs` of shape (room,)."""


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

    @property
    def diagonal(self) -> Floats:
        """Return the variances, shape (E, width); a view."""
        diagonal: Floats = np.einsum("eii->ei", self.filled)
        return diagonal

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


@dataclass(frozen=True)
class Reach:
    """How an example bears on the belief: covariance times features, by where the weights lie.

    Attributes:
        loose: slots of the example's weights that are in no block.
        loose_gains: their variances times the features, shape (E, number of loose).
        gains: block to its covariance times the features, shape (E, width).
        variances: of each member's prediction, without the reward's noise, shape (E,).
        squares: sum of the squares of the parts of `variances` that the belief keeps apart, shape
            (E,): one part for each block, and one for each weight in none.
    """

    loose: Integers
    loose_gains: Floats
    gains: dict[int, Floats]
    variances: Floats
    squares: Floats


class Beliefs:
    """The mean and the covariance of each weight, for E members that learn side by side.

    Args:
        members: E.
        block: most weights in one block.
        dense: most weights in all blocks together.

    Attributes:
        features: the feature of each slot; slot 0 stands for all that were never met.
        slot_of: the slot of each feature.
        since: shape (room,); number of the example that a weight was first met in.
        priors: shape (room,); variance that a weight was given then, and fades back to. That of new
            weights falls while the features' norm grows: with it, older ones would never fade.
        means, variances: shape (E, room); variances of weights in no block.
        spreads: shape (E, room); variance of the predictions that a weight takes part in.
        faded: shape (E, room); how much of what is known of those predictions was forgotten since
            a weight was first met, as a negative natural logarithm; see `fade`.
        dropped: shape (E, room); the same, for what was lost with covariances that are not kept;
            see `settle`.
        home, place: shape (room,); block of each slot, or -1, and its row there.
    """

    def __init__(self, members: int, block: int, dense: int) -> None:
        self.features: list[int] = [-1]
        self.slot_of: dict[int, int] = {}
        self.since: Integers = np.zeros(FIRST_ROOM, dtype=np.int64)
        self.priors: Floats = np.zeros(FIRST_ROOM)
        self.means: Floats = np.zeros((members, FIRST_ROOM))
        self.variances: Floats = np.zeros((members, FIRST_ROOM))
        self.spreads: Floats = np.zeros((members, FIRST_ROOM))
        self.faded: Floats = np.zeros((members, FIRST_ROOM))
        self.dropped: Floats = np.zeros((members, FIRST_ROOM))
        self.home: Integers = np.full(FIRST_ROOM, LOOSE)
        self.place: Integers = np.zeros(FIRST_ROOM, dtype=np.int64)
        self.blocks: dict[int, Block] = {}
        self.in_blocks = 0
        self._members, self._block, self._dense = members, block, dense

    def slots(self, x: Features) -> Integers:
        """Return the slots of features; slot 0 for one that was never met."""
        return np.array([self.slot_of.get(index, UNMET) for index in x], dtype=np.int64)

    def admit(self, x: Features, prior: float, energy: float, example: int) -> Integers:
        """Return the slots of features. A new feature gets one.

        Blocks whose features occur together are joined if they fit into one.

        Args:
            prior: variance of a new weight.
            energy: mean squared norm of the features.
            example: number of the example that is learned.
        """
        slots = [self.slot_of.get(index, UNMET) for index in x]
        if UNMET in slots:
            homes = self._homes(slots)
            new = [index for index in x if index not in self.slot_of]
            first = len(self.features)
            self._append(new)
            fresh = range(first, first + len(new))
            self.since[fresh] = example
            self.priors[fresh] = prior
            self.spreads[:, fresh] = prior * energy
            self._house(fresh, homes[0] if homes else max(self.blocks, default=-1) + 1, prior)
            slots = [self.slot_of[index] for index in x]
        homes = self._homes(slots)
        for other in homes[1:]:
            if self.blocks[homes[0]].width + self.blocks[other].width <= self._block:
                self._into(homes[0], self.blocks[other].slots, self.blocks.pop(other).filled)
        return np.array(slots, dtype=np.int64)

    def reach(self, slots: Integers, values: Floats) -> Reach:
        """Return how an example with these features bears on the belief."""
        homes = self.home[slots]
        loose, loose_values = slots[homes == LOOSE], values[homes == LOOSE]
        loose_gains = self.variances[:, loose] * loose_values
        parts = loose_gains * loose_values
        variances, squares = total(parts), total(parts * parts)
        gains: dict[int, Floats] = {}
        for block_id in dict.fromkeys(homes.tolist()):
            if block_id != LOOSE:
                here, places = values[homes == block_id], self.place[slots[homes == block_id]]
                covariances = self.blocks[block_id].filled
                gains[block_id] = np.add.accumulate(covariances[:, places] * here[:, None], axis=1)[
                    :, -1
                ]
                part = total(gains[block_id][:, places] * here)
                variances, squares = variances + part, squares + part * part
        return Reach(loose, loose_gains, gains, variances, squares)

    def gains(self, reach: Reach, spreads: Floats) -> tuple[Integers, Floats]:
        """Return the weights that an example moves, and by how much for an error of 1.

        Args:
            spreads: variance of the reward that each member expects, shape (E,).

        Returns:
            Their slots, shape (m,), and gains, shape (E, m).
        """
        blocks = [self.blocks[block_id].slots for block_id in reach.gains]
        gains = np.concatenate([reach.loose_gains, *reach.gains.values()], axis=1)
        return np.concatenate([reach.loose, *blocks]), gains / spreads[:, None]

    def move(self, reach: Reach, steps: Floats) -> None:
        """Move the means along an example, by `steps` of shape (E,) times its gains."""
        wide = steps[:, None]
        self.means[:, reach.loose] += reach.loose_gains * wide
        for block_id, gain in reach.gains.items():
            self.means[:, self.blocks[block_id].slots] += gain * wide

    def narrow(self, reach: Reach, spreads: Floats, sign: float = 1.0) -> None:
        """Take the outer product of the gains, divided by `spreads` of shape (E,), from the
        covariances; add it where the sign is -1.
        """
        wide = spreads[:, None]
        self.variances[:, reach.loose] -= sign * (reach.loose_gains * reach.loose_gains / wide)
        for block_id, gain in reach.gains.items():
            scaled = gain / np.sqrt(wide)  # the square of one array is symmetric to the last bit
            covariances = self.blocks[block_id].filled
            covariances -= sign * (scaled[:, :, None] * scaled[:, None, :])

    def fade(self, slots: Integers, shares: Floats, energy: float) -> None:
        """Move the variances of an example's weights towards their priors, so that older examples
        count less; all weights of a block together.

        Args:
            shares: by which they move, shape (E, 1).
            energy: mean squared norm of the features.
        """
        homes = self.home[slots]
        self._fade_loose(slots[homes == LOOSE], shares, energy)
        for block_id in dict.fromkeys(homes.tolist()):
            if block_id != LOOSE:
                self._fade_block(self.blocks[block_id], shares, energy)

    def fade_all(self, share: float, energy: float) -> None:
        """Move all variances towards their priors by a share in [0, 1]."""
        shares = np.full((self._members, 1), share)
        met = np.arange(1, len(self.features))
        self._fade_loose(met[self.home[met] == LOOSE], shares, energy)
        for block in self.blocks.values():
            self._fade_block(block, shares, energy)

    def prior_of(self, slots: Integers, values: Floats) -> float:
        """Return the variance of a prediction when nothing is known of its weights."""
        return float(total(self.priors[slots] * values * values))

    def settle(self, slots: Integers, reach: Reach, noise: Floats) -> None:
        """Note what is known of a prediction after an example with that noise.

        With all covariances, a variance v would become v n / (v + n). Without those between blocks
        it stays greater: that much was forgotten at once.
        """
        variances = np.maximum(reach.variances, TINY)
        spreads = variances - reach.squares / (variances + noise)
        exact = variances * noise / (variances + noise)
        ratios = np.maximum(1.0, spreads / np.maximum(exact, TINY))
        lost = np.array([log(ratio) for ratio in ratios.tolist()])
        self.dropped[:, slots] += lost[:, None]
        self.spreads[:, slots] = np.maximum(spreads, exact)[:, None]

    def faded_of(self, slots: Integers, values: Floats) -> Floats:
        """Return how much was forgotten of a prediction since its weights were met, shape (E,)."""
        return _forgotten(self.faded[:, slots], self.dropped[:, slots], values)

    def faded_until(self, slots: Integers, values: Floats, example: int, now: int) -> Floats:
        """Estimate what `faded_of` was before an example.

        It is taken to have grown evenly since the weights were met.

        Args:
            example: its number.
            now: number of the newest example.
        """
        age, span = now - example, np.maximum(1, now - self.since[slots])
        then = 1.0 - np.minimum(1.0, age / span)
        return _forgotten(self.faded[:, slots] * then, self.dropped[:, slots] * then, values)

    def _fade_loose(self, slots: Integers, shares: Floats, energy: float) -> None:
        added = shares * (self.priors[slots] - self.variances[:, slots])
        self.variances[:, slots] += added
        self._note_fading(slots, added, energy)

    def _fade_block(self, block: Block, shares: Floats, energy: float) -> None:
        diagonal = block.diagonal
        # Only upwards: a matrix whose diagonal shrinks may be no covariance any more.
        added = shares * np.maximum(self.priors[block.slots] - diagonal, 0.0)
        diagonal += added
        self._note_fading(block.slots, added, energy)

    def _note_fading(self, slots: Integers, added: Floats, energy: float) -> None:
        """Note what variances were added.

        When a prediction's variance grows from v to v + a, the share v / (v + a) is left of what
        was known of it (the transition of a Kalman filter's information form). The logarithm of
        1 + q is 2q / (2 + q) to the third order; a library's logarithm may differ in its last bit
        from one machine to another.
        """
        spreads = self.spreads[:, slots]
        grown = np.maximum(added, 0.0) * energy
        ratios = grown / np.maximum(spreads, TINY)
        self.faded[:, slots] += 2.0 * ratios / (2.0 + ratios)
        self.spreads[:, slots] = spreads + grown

    def _homes(self, slots: Sequence[int]) -> list[int]:
        """Return the blocks that these slots lie in, in the order they are met."""
        return [home for home in dict.fromkeys(self.home[slots].tolist()) if home != LOOSE]

    def _house(self, slots: range, block_id: int, prior: float) -> None:
        """Put new weights into a block while there is room; the others keep a variance only."""
        taken = self.blocks[block_id].width if block_id in self.blocks else 0
        room = max(0, min(self._block - taken, self._dense - self.in_blocks, len(slots)))
        self.variances[:, slots] = prior
        if not room:
            return
        self.in_blocks += room
        self._into(
            block_id,
            slots[:room],
            np.broadcast_to(np.eye(room) * prior, (self._members, room, room)),
        )

    def _into(self, block_id: int, slots: Sequence[int] | Integers, covariances: Floats) -> None:
        block = self.blocks.setdefault(block_id, Block(self._members))
        self.home[slots] = block_id
        self.place[slots] = np.arange(block.width, block.width + len(slots))
        self.variances[:, slots] = 0.0
        block.append(slots, covariances)

    def _append(self, features: Sequence[int]) -> None:
        """Give features a slot each, and double the arrays until all have room."""
        for index in features:
            self.slot_of[index] = len(self.features)
            self.features.append(index)
        while len(self.home) < len(self.features):
            for name in BY_MEMBER:
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)], axis=1))
            for name in BY_WEIGHT:
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
            self.home = np.concatenate([self.home, np.full_like(self.home, LOOSE)])
            self.place = np.concatenate([self.place, np.zeros_like(self.place)])

    def restore(
        self,
        features: Sequence[int],
        since: Integers,
        priors: Floats,
        by_member: Mapping[str, Floats],
    ) -> None:
        """Restore weights that are in no block yet.

        Args:
            since, priors: shape (n,).
            by_member: arrays of shape (E, n), named as in `BY_MEMBER`.
        """
        self._append(features)
        met = slice(1, len(self.features))
        self.since[met] = since
        self.priors[met] = priors
        for name, values in by_member.items():
            getattr(self, name)[:, met] = values

    def restore_block(self, block_id: int, slots: Sequence[int], covariances: Floats) -> None:
        """Restore a block; covariances of shape (E, n, n)."""
        self.in_blocks += len(slots)
        self._into(block_id, slots, covariances)


def _forgotten(faded: Floats, dropped: Floats, values: Floats) -> Floats:
    """Return how much was forgotten of a prediction, as a negative natural logarithm, shape (E,).

    Variances add up over the weights, so `faded` counts as a mean. Of what is dropped the mean
    share that is left counts: weights of its own keep what an example taught while those that it
    has in common with others are overwritten.

    Args:
        faded, dropped: shape (E, n).
        values: shape (n,).
    """
    weights = values * values / max(float(total(values * values)), TINY)
    least = np.min(dropped, axis=1)
    apart = (dropped - least[:, None]).tolist()
    left = total(np.array([[exp(-one) for one in row] for row in apart]) * weights)
    logs = np.array([log(max(one, TINY)) for one in left.tolist()])
    forgotten: Floats = total(faded * weights) + least - logs
    return forgotten


def total(terms: Floats) -> Floats:
    """Return the sum over the last axis, added from first to last.

    NumPy's own sum changes the order with the array's size, which would change the last bits.
    """
    if not terms.shape[-1]:
        return np.zeros(terms.shape[:-1])
    summed: Floats = np.add.accumulate(terms, axis=-1)[..., -1]
    return summed
