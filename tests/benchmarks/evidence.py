"""`make bench-evidence`: how often gates, trials and watches are wrong where the truth is known.

Each world is simulated a thousand times and more. The wagers are those that are deployed, played on
all pairs of a world at once (`won_at`, tested against `learners.betting.Wager`). What a rollout
counts at its age follows `streams.processors.evidence`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, log, sqrt
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from learners.betting import BOLD, FRACTIONS
from learners.gate import GateConfig, judge
from learners.logged import Logged
from learners.online_error import OnlineError
from learners.policies import UNIFORM_VERSION, UniformPolicy
from learners.trial import Pairing
from schemas.decisions import Candidate, Decision
from streams.processors.evidence import COMMON_DELAY, DELAYS_REMEMBERED, MARGIN
from tests.benchmarks.machine import machine

CONFIG = GateConfig()
CHAMPION = 0.6
PER_HOUR = 200
ROLLOUTS = 12_000
"""Rollouts of a trial at most; with a fifth for the candidate, there are some 2,000 pairs then."""

Floats = NDArray[np.float64]
Bits = NDArray[np.bool_]


def won_at(
    differences: Floats, mean: float, error: float, shares: Sequence[float] = FRACTIONS
) -> int | None:
    """Return after how many differences in [-1, 1] a wager on a mean above `mean` is won."""
    odds = (differences - mean) / (mean + 1.0)
    stakes = np.cumsum(np.log1p(np.outer(shares, odds)), axis=1)
    most = stakes.max(axis=0)
    mixed = most + np.log(np.exp(stakes - most).mean(axis=0))
    won = np.flatnonzero(mixed >= log(1.0 / error))
    return int(won[0]) + 1 if won.size else None


class Pairs:
    """The differences of one value that are compared, and after which rollout each was known."""

    def __init__(self, share: float, tolerance: float) -> None:
        self.pairing = Pairing.of(share)
        self.tolerance = tolerance
        self.differences: list[float] = []
        self.at: list[int] = []
        self.total = 0.0

    def take(self, number: int, is_new: bool, value: float) -> None:
        """Add the value of a rollout."""
        difference = self.pairing.take(is_new, value)
        if difference is not None:
            self.differences.append(difference)
            self.at.append(number)
            self.total += difference

    @property
    def promises(self) -> bool:
        """As `learners.trial.Paired.promises`."""
        return self.total >= -self.tolerance * len(self.differences)

    def won(
        self, sign: float, mean: float, error: float, shares: Sequence[float] = FRACTIONS
    ) -> float:
        """Return after which rollout a wager on the differences, or on what is lost, is won."""
        differences = sign * np.array(self.differences[: CONFIG.canary_pairs])
        number = won_at(differences, mean, error, shares)
        return inf if number is None else self.at[number - 1]


@dataclass(frozen=True)
class Rollouts:
    """Simulated rollouts, in the order in which they begin.

    Each has two outcomes, one for each version that it may be assigned: first the old one's.

    Attributes:
        draws: shape (n,), in [0, 1); the new version gets a rollout if its share is greater.
        worth: 0 where it failed; shape (2, n).
        failed, missing: whether it failed; whether its reward has not come at its age.
    """

    draws: Floats
    worth: Floats
    failed: Bits
    missing: Bits


@dataclass(frozen=True)
class World:
    """A world with two versions.

    Attributes:
        gain: how much more of its rollouts the newer version does right.
        fails: share of its rollouts that fail besides.
        bad_news_h: mean delay of a reward of 0; that of a reward of 1 is six minutes. Delays are
            exponential.
        known_h: for how long the champion had served when the age was learned.
        drift: how much more both do right at the end than at the beginning.
    """

    gain: float = 0.0
    fails: float = 0.0
    bad_news_h: float = 0.0
    known_h: float = 240.0
    drift: float = 0.0

    def rollouts(self, random: np.random.Generator, count: int) -> Rollouts:
        """Return simulated rollouts."""
        is_new = np.array([[False], [True]])
        mean = CHAMPION + self.gain * is_new + self.drift * np.arange(count) / count
        failed = is_new & (random.random(count) < self.fails)
        worth = ((random.random(count) < mean) & ~failed).astype(float)
        missing = np.zeros((2, count), dtype=bool)
        if self.bad_news_h:
            age = self._age(random)
            missing = self._delays(random, worth) > age
        return Rollouts(random.random(count), worth, failed, missing & ~failed)

    def _delays(self, random: np.random.Generator, worth: Floats) -> Floats:
        return random.exponential(np.where(worth > 0, 0.1, self.bad_news_h))

    def _age(self, random: np.random.Generator) -> float:
        """Return the age that is learned from the champion's newest rewards."""
        count = int(self.known_h * PER_HOUR)
        begun = np.sort(random.random(count)) * self.known_h
        delays = self._delays(random, (random.random(count) < CHAMPION).astype(float))
        came = begun + delays
        known = np.flatnonzero(came <= self.known_h)
        newest = known[np.argsort(came[known])[-DELAYS_REMEMBERED:]]
        return MARGIN * float(np.quantile(delays[newest], COMMON_DELAY, method="higher"))


def compared(
    world: Rollouts, tolerance: float, share: float, level: float, error: float, raised: float = 0.0
) -> str:
    """Return how a comparison ends: `passed`, `worse` or `open`.

    Args:
        share: of rollouts that the new version gets.
        raised: what it gets once nothing speaks against it; 0 if that never changes.
    """
    worth = Pairs(share, tolerance)
    success = Pairs(share, CONFIG.failure_tolerance)
    response = Pairs(share, CONFIG.missing_tolerance)
    values = (worth, success, response)
    rows = zip(
        world.draws.tolist(),
        world.worth.T.tolist(),
        world.failed.T.tolist(),
        world.missing.T.tolist(),
        strict=True,
    )
    for number, (draw, worths, failed, missing) in enumerate(rows):
        new = draw < share
        success.take(number, new, 1.0 - failed[new])
        response.take(number, new, 1.0 - missing[new])
        if not missing[new]:
            worth.take(number, new, worths[new])
        if (
            share < raised
            and len(success.differences) >= CONFIG.raise_after
            and all(value.promises for value in values)
        ):
            share = raised
            for value in values:
                value.pairing.expect(share)
    passed = max(
        worth.won(1, -tolerance, level / 2),
        success.won(1, -CONFIG.failure_tolerance, level, BOLD),
        response.won(1, -CONFIG.missing_tolerance, level, BOLD),
    )
    worse = min(
        worth.won(-1, tolerance, error / 2),
        success.won(-1, CONFIG.failure_tolerance, error / 2),
    )
    if passed == worse:
        return "open"
    return "passed" if passed < worse else "worse"


def trial(world: World, seed: int) -> str:
    """Try a candidate, the first of its name."""
    rollouts = world.rollouts(np.random.default_rng(seed), ROLLOUTS)
    level = OnlineError().begin(CONFIG.error)
    share, raised = CONFIG.canary_share, CONFIG.raised_share
    return compared(rollouts, CONFIG.tolerance, share, level, CONFIG.error, raised)


def watch(world: World, seed: int) -> str:
    """Watch what was promoted, beside a control that gets a twentieth."""
    rollouts = world.rollouts(np.random.default_rng(seed), 4 * ROLLOUTS)
    level = OnlineError().begin(CONFIG.error)
    return compared(rollouts, CONFIG.drop, 1.0 - CONFIG.control_share, CONFIG.error, level)


def hundred(gain: float, seed: int) -> str:
    """Try a hundred candidates one after another; return whether any passed."""
    random, tests = np.random.default_rng(seed), OnlineError()
    share, raised = CONFIG.canary_share, CONFIG.raised_share
    for _ in range(100):
        level = tests.begin(CONFIG.error)
        rollouts = World(gain=gain).rollouts(random, ROLLOUTS // 6)
        end = compared(rollouts, CONFIG.tolerance, share, level, CONFIG.error, raised)
        if end == "passed":
            return "passed"
    return "open"


class Fixed:
    """A policy with two candidates."""

    feature_version = 0

    def __init__(self, first: float) -> None:
        self._chances = [first, 1.0 - first]

    def probabilities(
        self, context: str, candidates: Sequence[Candidate], tenant: str = ""
    ) -> list[float]:
        return self._chances


def off_policy(gain: float, decisions: int, seed: int) -> str:
    """Judge a candidate on 300 held-out rollouts of the uniform baseline."""
    random = np.random.default_rng(seed)
    candidate, apart = Fixed(0.985), gain / (0.985 - 0.5)
    means = (CHAMPION + apart, CHAMPION - apart) if gain else (CHAMPION, CHAMPION)
    log_of = []
    for number in range(300):
        choice = int(random.random() < 0.5)
        reward = float(random.random() < means[choice])
        decision = _decision(choice)
        log_of += [Logged(decision, reward, str(number))] * decisions
    verdict = judge(candidate, UniformPolicy(), log_of, CONFIG)
    return "passed" if verdict.passed else "open"


def _decision(choice: int) -> Decision:
    return _DECISIONS[choice]


_DECISIONS = [
    Decision(
        policy="p",
        policy_version=UNIFORM_VERSION,
        feature_version=0,
        candidates=[Candidate(text="a"), Candidate(text="b")],
        probabilities=[0.5, 0.5],
        choice=choice,
        propensity=0.5,
    )
    for choice in (0, 1)
]


def simulations() -> dict[str, tuple[str, str, Callable[[int], str]]]:
    """Return the worlds by name: what is asked of them, the end that counts, and the simulation."""
    worse, better = (0.02, 0.05, 0.1, 0.2), (0.05, 0.1, 0.2)
    found: dict[str, tuple[str, str, Callable[[int], str]]] = {}

    def add(kind: str, name: str, counts: str, simulation: Any) -> None:
        found[name] = (kind, counts, simulation)

    add("power", "trial: equal, promoted", "passed", partial(trial, World()))
    add("error", "trial: equal, rolled back", "worse", partial(trial, World()))
    for gain in worse:
        world = World(gain=-gain)
        add(
            "error",
            f"trial: worse by {gain}, promoted",
            "passed",
            partial(trial, world),
        )
    for gain in better:
        world = World(gain=gain)
        add(
            "power",
            f"trial: better by {gain}, promoted",
            "passed",
            partial(trial, world),
        )
    for fails, gain in ((0.1, 0.0), (0.3, 0.0), (0.3, 0.3)):
        world = World(fails=fails, gain=gain)
        name = f"trial: {fails:.0%} more fail, the others better by {gain}, promoted"
        add("error", name, "passed", partial(trial, world))
    for hours in (1, 6, 24, 72):
        for known in (240.0, 2.0):
            world = World(gain=-0.2, bad_news_h=hours, known_h=known)
            served = f"champion served for {known:g} h"
            name = f"trial: bad news after {hours} h, {served}, worse by 0.2, promoted"
            add("error", name, "passed", partial(trial, world))
        world = World(gain=0.2, bad_news_h=hours)
        name = f"trial: bad news after {hours} h, better by 0.2, promoted"
        add("power", name, "passed", partial(trial, world))
    for drift in (-0.3, 0.3):
        way = "falls" if drift < 0 else "rises"
        world = World(drift=drift)
        add(
            "error",
            f"watch: equal, world {way} by 0.3, rolled back",
            "worse",
            partial(watch, world),
        )
        world = World(drift=drift, gain=-0.2)
        add(
            "power",
            f"watch: worse by 0.2, world {way} by 0.3, rolled back",
            "worse",
            partial(watch, world),
        )
        world = World(drift=drift, gain=-0.02)
        add(
            "error",
            f"trial: worse by 0.02, world {way} by 0.3, promoted",
            "passed",
            partial(trial, world),
        )
    for decisions in (1, 5, 10):
        for gain in (0.02, 0.05, 0.1):
            name = f"gate: {decisions} decisions a rollout, worse by {gain}, passes"
            add("error", name, "passed", partial(off_policy, -gain, decisions))
        name = f"gate: {decisions} decisions a rollout, better by 0.2, passes"
        add("power", name, "passed", partial(off_policy, 0.2, decisions))
    for gain in (0.02, 0.05):
        add(
            "error",
            f"100 candidates, each worse by {gain}, any promoted",
            "passed",
            partial(hundred, -gain),
        )
    return found


def interval(count: int, of: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson, JASA 1927)."""
    z, share = 1.96, count / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z * sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return max(0.0, middle - half), min(1.0, middle + half)


def main(
    out: Annotated[Path, typer.Option()] = Path("bench-evidence.json"),
    worlds: Annotated[int, typer.Option()] = 1000,
    only: Annotated[str, typer.Option(help="worlds whose name holds this")] = "",
) -> None:
    """Simulate each world and write how often the end that counts came."""
    document: dict[str, Any] = {"machine": machine(), "worlds": worlds, "results": {}}
    with get_context("fork").Pool() as pool:
        for name, (kind, counts, simulation) in simulations().items():
            if only not in name:
                continue
            ends = pool.map(simulation, range(worlds), chunksize=20)
            count = sum(end == counts for end in ends)
            low, high = interval(count, worlds)
            row = {"kind": kind, "share": count / worlds, "low": low, "high": high}
            document["results"][name] = row
            typer.echo(f"{kind:6} {count / worlds:6.3f} [{low:.3f}, {high:.3f}]  {name}")
            out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
