"""What each player earns on each problem, with paired intervals, learning curves and speed."""

import time
from collections.abc import Callable, Sequence
from math import sqrt
from multiprocessing import get_context
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from learners.bandit import benchmark_policy
from tests.benchmarks.bandits.players import PLAYERS, VW_GRID, Player, VowpalWabbit
from tests.benchmarks.bandits.problems import PROBLEMS, ROUNDS, Round
from tests.benchmarks.machine import milliseconds

SEEDS = tuple(range(20))
FEW_SEEDS = SEEDS[:5]
"""For what nothing is claimed of."""
TUNING_SEEDS = tuple(range(100, 104))
OURS = "everloop"
TUNED = "Vowpal Wabbit, tuned"
DEFAULT = "Vowpal Wabbit, defaults"
CURVE_STEP = 50
Game = tuple[str, str, int]


def earned(player: Player, rounds: Sequence[Round]) -> NDArray[np.float64]:
    """Return the reward of every round."""
    rewards = []
    for shown in rounds:
        index, propensity = player.choose(shown.candidates)
        player.learn(shown.candidates, index, propensity, shown.rewards[index])
        rewards.append(shown.rewards[index])
    return np.array(rewards)


def compared() -> dict[str, Any]:
    """Tune Vowpal Wabbit on other seeds, then play everything, paired by seed."""
    tuning = _played(
        [(f"vw {name}", p, seed) for name in VW_GRID for p in PROBLEMS for seed in TUNING_SEEDS]
    )
    tuned = {
        name: fmean(
            float(tuning[f"vw {name}", p, seed].mean()) for p in PROBLEMS for seed in TUNING_SEEDS
        )
        for name in VW_GRID
    }
    best = max(tuned, key=tuned.__getitem__)
    named = {name: name for name in PLAYERS} | {
        "vw squarecb 10, rate 0.5": DEFAULT,
        f"vw {best}": TUNED,
    }
    seeds = {
        name: SEEDS if shown in (OURS, TUNED, DEFAULT) else FEW_SEEDS
        for name, shown in named.items()
    }
    played = _played([(name, p, seed) for name in named for p in PROBLEMS for seed in seeds[name]])
    means = {
        shown: {p: [float(played[name, p, seed].mean()) for seed in seeds[name]] for p in PROBLEMS}
        for name, shown in named.items()
    }
    for shown in (OURS, TUNED):  # for comparison with those that played fewer
        means[f"{shown}, {len(FEW_SEEDS)} seeds"] = {
            p: of[: len(FEW_SEEDS)] for p, of in means[shown].items()
        }
    return {
        "rounds": ROUNDS,
        "seeds": {"everloop and Vowpal Wabbit": len(SEEDS), "others": len(FEW_SEEDS)},
        "vw_tuning": {"seeds": len(TUNING_SEEDS), "tried": tuned, "best": best},
        "mean_reward": {
            name: {p: fmean(found) for p, found in of.items()}
            | {"mean": fmean(map(fmean, of.values()))}
            for name, of in means.items()
        },
        "against_vw_tuned": _against(means[OURS], means[TUNED]),
        "curves": {
            named[name]: {
                p: _curve([played[name, p, seed] for seed in seeds[name]]) for p in PROBLEMS
            }
            for name in (OURS, f"vw {best}", "uniform")
        },
        "speed": _speed(best),
    }


def _against(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> dict[str, Any]:
    """Return the differences with two-sided 95 % Student intervals over seeds."""
    differences = {p: np.array(ours[p]) - np.array(theirs[p]) for p in ours}
    differences["mean"] = np.mean([*differences.values()], axis=0)
    return {p: _interval(found) for p, found in differences.items()}


def _interval(differences: NDArray[np.float64]) -> dict[str, float]:
    middle, count = float(differences.mean()), len(differences)
    reach = float(student.ppf(0.975, count - 1)) * float(differences.std(ddof=1)) / sqrt(count)
    return {"difference": middle, "low": middle - reach, "high": middle + reach}


def _curve(rewards: Sequence[NDArray[np.float64]]) -> list[float]:
    """Return the mean reward of each `CURVE_STEP` rounds, over the seeds."""
    steps = np.mean(rewards, axis=0).reshape(-1, CURVE_STEP).mean(axis=1)
    return [round(float(step), 4) for step in steps]


def _speed(best: str) -> dict[str, Any]:
    """Return decisions with their updates a second, one core, and how long a decision among ten
    takes.
    """
    factories: dict[str, Callable[[int], Player]] = {
        OURS: benchmark_policy,
        TUNED: lambda seed: VowpalWabbit(seed, VW_GRID[best]),
    }
    seconds = dict.fromkeys(factories, 0.0)
    rates: dict[str, dict[str, int]] = {}
    for problem, make in PROBLEMS.items():
        rounds = make(0)
        for name, factory in factories.items():
            begun = time.perf_counter()
            earned(factory(0), rounds)
            took = time.perf_counter() - begun
            seconds[name] += took
            rates.setdefault(problem, {})[name] = round(ROUNDS / took)
    rates["all"] = {name: round(len(PROBLEMS) * ROUNDS / took) for name, took in seconds.items()}
    return {
        "rounds_per_second": rates,
        "share_of_vw": round(seconds[TUNED] / seconds[OURS], 3),
        "decision_among_10": {name: _decisions(factory(0)) for name, factory in factories.items()},
    }


def _decisions(player: Player) -> dict[str, float]:
    """Return how long decisions among ten candidates of 65 features take, learning between them."""
    took = []
    for shown in PROBLEMS["digits"](0):
        begun = time.perf_counter()
        index, propensity = player.choose(shown.candidates)
        took.append(time.perf_counter() - begun)
        player.learn(shown.candidates, index, propensity, shown.rewards[index])
    return milliseconds(took)


def _played(games: Sequence[Game]) -> dict[Game, NDArray[np.float64]]:
    with get_context("fork").Pool() as pool:
        return dict(zip(games, pool.map(_game, games, chunksize=4), strict=True))


def _game(game: Game) -> NDArray[np.float64]:
    name, problem, seed = game
    player = (
        VowpalWabbit(seed, VW_GRID[name.removeprefix("vw ")])
        if name.startswith("vw ")
        else PLAYERS[name](seed)
    )
    return earned(player, PROBLEMS[problem](seed))
