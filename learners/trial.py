"""Comparisons of two versions that serve at the same time: trials of candidates, and the watch over
what was promoted.

The unit is a rollout, counted for the version it was assigned, at the same age for both versions.
It has three values: what it was worth, whether it succeeded, and whether its reward came. A version
must hold in all three. Else a version could win by failing where it would have earned little, or by
not finishing where it would have been graded.
"""

from dataclasses import dataclass
from math import fsum, sqrt

from pydantic import BaseModel, Field

from learners.betting import Wager
from learners.bounds import decisions_needed
from learners.gate import GateConfig

MOST_EACH = 20
"""Values of one version in a pair, at most. More would hardly make their mean surer."""

MOST_WAITING = 64
"""Values that wait for those of the other version. Older ones fall out; what they were has no say
in that.
"""


class Tally(BaseModel):
    """Values of one version, counted and summed."""

    count: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float:
        """Mean value; 0 if there is none."""
        return self.total / self.count if self.count else 0.0

    def take(self, value: float) -> None:
        """Add a value."""
        self.count += 1
        self.total += value


class Pairing(BaseModel):
    """Makes pairs of two versions' values, in the order in which they come.

    A pair has one value of the version that serves less often, and as many of the other as come
    meanwhile; their mean counts. So both sides of a pair are of nearly the same time, and a world
    that changes for both changes nothing here.

    Attributes:
        new_each, old_each: values of each version in a pair.
        new, old: values that wait for the other version's, the oldest first.
    """

    new_each: int = 1
    old_each: int = 1
    new: list[float] = []
    old: list[float] = []

    @classmethod
    def of(cls, share: float) -> "Pairing":
        """Return a pairing for a new version that gets a share of rollouts, in (0, 1)."""
        found = cls()
        found.expect(share)
        return found

    def expect(self, share: float) -> None:
        """Make pairs as the new version gets this share of rollouts, in (0, 1)."""
        self.new_each = min(MOST_EACH, max(1, round(share / (1.0 - share))))
        self.old_each = min(MOST_EACH, max(1, round((1.0 - share) / share)))

    def take(self, is_new: bool, value: float) -> float | None:
        """Add a value of one version; return the difference, new minus old, if a pair is made."""
        (self.new if is_new else self.old).append(value)
        complete = len(self.new) >= self.new_each and len(self.old) >= self.old_each
        # The shares may be others than was thought. Then what waits is paired with what there is.
        full = max(len(self.new), len(self.old)) >= MOST_WAITING and self.new and self.old
        if not complete and not full:
            self.new, self.old = self.new[-MOST_WAITING:], self.old[-MOST_WAITING:]
            return None
        new, self.new = self.new[: self.new_each], self.new[self.new_each :]
        old, self.old = self.old[: self.old_each], self.old[self.old_each :]
        return fsum(new) / len(new) - fsum(old) / len(old)


class Paired(BaseModel):
    """The difference of two versions in one value, pair by pair; in [-1, 1].

    Attributes:
        pairing: makes the pairs.
        no_worse: won when the difference is surely above minus the tolerance.
        worse: won when it is surely below.
        total, squares: of the differences.
    """

    pairing: Pairing
    no_worse: Wager
    worse: Wager
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, tolerance: float, share: float = 0.5, *, bold: bool = False) -> "Paired":
        """Return a comparison without values.

        Args:
            share: of rollouts that the new version gets, in (0, 1).
            bold: see `Wager`.
        """
        return cls(
            pairing=Pairing.of(share),
            no_worse=Wager(mean=-tolerance, least=-1.0, bold=bold),
            worse=Wager(mean=tolerance, least=-1.0),
        )

    @property
    def pairs(self) -> int:
        """How many pairs there were."""
        return self.no_worse.values

    def take(self, is_new: bool, value: float) -> None:
        """Add a value in [0, 1] of one of the two versions."""
        difference = self.pairing.take(is_new, value)
        if difference is not None:
            self.no_worse.take(difference)
            self.worse.take(-difference)
            self.total += difference
            self.squares += difference * difference

    @property
    def promises(self) -> bool:
        """Whether the new version has been no worse so far, surely or not."""
        return self.total >= self.no_worse.mean * self.pairs

    def needed(self, level: float) -> int | None:
        """Return how many pairs `no_worse` is likely to need, at the difference seen so far; None
        where that is not above minus the tolerance.
        """
        if not self.pairs:
            return None
        mean = self.total / self.pairs
        gain = mean - self.no_worse.mean
        # Twenty equal differences would give a deviation of 0, which no bet lives up to.
        deviation = sqrt(max(self.squares / self.pairs - mean * mean, 0.0025))
        return decisions_needed(gain, deviation, level) if gain > 0 else None


@dataclass(frozen=True)
class Result:
    """What a rollout came to, at the age at which rollouts are compared.

    Attributes:
        worth: in [0, 1]; None where its reward has not come, and it has not failed.
        failed: whether it failed, by its own fault or that of the version's server.
    """

    version: str
    worth: float | None
    failed: bool


class Arm(BaseModel):
    """The rollouts of one version, counted.

    Attributes:
        rollouts: all of them.
        failed: that failed.
        missing: that have no worth.
        worth: of the others.
    """

    rollouts: int = 0
    failed: int = 0
    missing: int = 0
    worth: Tally = Field(default_factory=Tally)

    def take(self, result: Result) -> None:
        """Add a rollout."""
        self.rollouts += 1
        self.failed += result.failed
        if result.worth is None:
            self.missing += 1
        else:
            self.worth.take(result.worth)

    @property
    def words(self) -> str:
        """The counts in words."""
        return (
            f"{self.worth.mean:.3f} on average, {self.failed} failed and {self.missing} without a"
            f" reward of {self.rollouts} rollouts"
        )


class Comparison(BaseModel):
    """Two versions that serve at the same time.

    Attributes:
        new, old: the versions.
        share: of rollouts that the new version gets, in (0, 1).
        level: probability of a wrong verdict: of a trial, that a worse version passes; of a watch,
            that a version is taken back that did not drop.
        worth, success, response: the three values, each with its tolerance.
        worth_is_sure: whether held-out rollouts have shown already that the new version earns no
            less, at half of `level`.
        arms: counts by version.
        began: when the first rollout of the new version began that was heard of, in seconds since
            the epoch; None before.
        unmet: how often the old version was heard of before that.
    """

    new: str
    old: str
    share: float
    level: float
    worth: Paired
    success: Paired
    response: Paired
    worth_is_sure: bool = False
    arms: dict[str, Arm]
    began: float | None = None
    unmet: int = 0

    @classmethod
    def of(
        cls, new: str, old: str, level: float, tolerance: float, share: float, config: GateConfig
    ) -> "Comparison":
        """Return a comparison without rollouts.

        Args:
            tolerance: of worth.
            share: of rollouts that the new version gets, in (0, 1).
        """
        return cls(
            new=new,
            old=old,
            share=share,
            level=level,
            worth=Paired.of(tolerance, share),
            success=Paired.of(config.failure_tolerance, share, bold=True),
            response=Paired.of(config.missing_tolerance, share, bold=True),
            arms={new: Arm(), old: Arm()},
        )

    def see(self, version: str, begun: float) -> None:
        """Note a rollout. The comparison begins with the first one of the new version."""
        if self.began is None:
            self.began = begun if version == self.new else None
            self.unmet += version == self.old

    def includes(self, version: str, begun: float) -> bool:
        """Return whether a rollout takes part: it was assigned one of the versions, and began since
        both serve.
        """
        return version in self.arms and self.began is not None and begun >= self.began

    def take(self, result: Result) -> None:
        """Add a rollout of one of the two versions."""
        is_new = result.version == self.new
        self.arms[result.version].take(result)
        self.success.take(is_new, float(not result.failed))
        self.response.take(is_new, float(result.worth is not None))
        if result.worth is not None:
            self.worth.take(is_new, result.worth)

    @property
    def pairs(self) -> int:
        """How many pairs of rollouts were compared."""
        return self.success.pairs

    @property
    def words(self) -> str:
        """Both arms in words."""
        return f"{self.new}: {self.arms[self.new].words}; {self.old}: {self.arms[self.old].words}"

    def get(self, share: float) -> None:
        """Give the new version another share of rollouts. Wagers stay fair: whichever pairs come
        later, their differences have the same mean.
        """
        self.share = share
        for value in (self.worth, self.success, self.response):
            value.pairing.expect(share)

    @property
    def promises(self) -> bool:
        """Whether nothing that was seen so far speaks against the new version."""
        return self.worth.promises and self.success.promises and self.response.promises

    def worse(self, error: float) -> str | None:
        """Return in which way the new version is surely worse; None while it is not.

        The error is halved, because there are two ways.
        """
        if self.worth.worse.won(error / 2):
            return "earns less"
        if self.success.worse.won(error / 2):
            return "fails more often"
        return None

    @property
    def no_worse(self) -> bool:
        """Whether the new version is surely no worse in all three values, by more than their
        tolerances.

        It is wrong with probability at most `level`: whatever is worse, its own wager must be won.
        Worth may be shown in two ways, off-policy and here, so each gets half.
        """
        return not self.unsure

    @property
    def unsure(self) -> dict[str, Paired]:
        """The values in which the new version is not surely no worse yet, by what they are."""
        sure = {
            "worth": self.worth_is_sure or self.worth.no_worse.won(self.level / 2),
            "failures": self.success.no_worse.won(self.level),
            "missing rewards": self.response.no_worse.won(self.level),
        }
        values = {"worth": self.worth, "failures": self.success, "missing rewards": self.response}
        return {name: values[name] for name, is_sure in sure.items() if not is_sure}


@dataclass(frozen=True)
class Decided:
    """The end of a comparison."""

    passed: bool
    reason: str


def trial_verdict(trial: Comparison, config: GateConfig) -> Decided | None:
    """Return how a trial ends; None while it goes on."""
    worse = trial.worse(config.error)
    if worse is not None:
        return Decided(
            False, f"on trial it {worse}, surely, after {trial.pairs} pairs ({trial.words})"
        )
    if trial.no_worse:
        return Decided(
            True,
            f"on trial surely no worse than {trial.old}, after {trial.pairs} pairs of rollouts"
            f" ({trial.words})",
        )
    if trial.unmet >= config.canary_pairs:
        return Decided(False, "no rollout was ever assigned to it; can a gateway load it?")
    if trial.pairs >= config.canary_pairs:
        return Decided(
            False,
            f"the trial did not convince within {trial.pairs} pairs of rollouts: not sure are"
            f" {', '.join(trial.unsure)} ({trial.words})",
        )
    return None


def watch_verdict(watch: Comparison, config: GateConfig) -> Decided | None:
    """Return how a watch ends; None while it goes on. It passes unless the version has surely
    dropped.
    """
    worse = watch.worse(watch.level)
    if worse is not None:
        return Decided(False, f"it {worse} than {watch.old}, surely ({watch.words})")
    if watch.worth.no_worse.won(config.error) and watch.success.no_worse.won(config.error):
        return Decided(True, f"surely no worse than {watch.old} by {config.drop} ({watch.words})")
    if watch.pairs >= config.canary_pairs:
        return Decided(True, f"no drop in {watch.pairs} pairs ({watch.words})")
    return None
