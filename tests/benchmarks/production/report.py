"""The figures of all players, beside each other."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np

from tests.benchmarks.production.installation import Played
from tests.benchmarks.production.players import GRID, Floats

QUARTERS = 4
STEP = 100
"""Rounds for each point of a curve."""

DEFAULT = "squarecb 10, rate 0.5, context x id"
TUNED, BEST = "Vowpal Wabbit, tuned", "Vowpal Wabbit, tuned for each problem"
UNGATED, PRODUCTION = "Everloop without a gate", "Everloop as deployed"


def compared(
    played: Mapping[tuple[str, str, int], Floats],
    paths: Mapping[tuple[str, int], Played] | None,
) -> dict[str, Any]:
    """Return mean rewards over seeds, in all rounds and by quarters, and curves.

    Args:
        played: rewards by player, problem and seed.
        paths: what came by HTTP, by problem and seed.
    """
    seeds = list(dict.fromkeys(seed for _, _, seed in played))
    names = list(dict.fromkeys(name for _, name, _ in played))

    def of(player: str, name: str) -> Floats:
        rewards: Floats = np.mean([played[player, name, seed] for seed in seeds], axis=0)
        return rewards

    tried = {player: fmean(float(of(player, name).mean()) for name in names) for player in GRID}
    tuned = max(tried, key=tried.__getitem__)
    best = {name: max(GRID, key=lambda player: float(of(player, name).mean())) for name in names}
    found = {
        "uniform": {name: of("uniform", name) for name in names},
        "Vowpal Wabbit, defaults": {name: of(DEFAULT, name) for name in names},
        TUNED: {name: of(tuned, name) for name in names},
        BEST: {name: of(best[name], name) for name in names},
        UNGATED: {name: of("ungated", name) for name in names},
    }
    if paths is not None:
        found[PRODUCTION] = {
            name: np.mean([paths[name, seed].rewards for seed in seeds], axis=0) for name in names
        }
    return {
        "vw_tuning": {"tried": tried, "best": tuned, "best_for_each_problem": best},
        "mean_reward": {player: _means(rewards) for player, rewards in found.items()},
        "by_quarter": {
            player: {
                name: [round(float(part.mean()), 4) for part in np.array_split(row, QUARTERS)]
                for name, row in rewards.items()
            }
            for player, rewards in found.items()
        },
        "path": None if paths is None else _path(paths),
        "curves": {
            player: {name: _curve(row) for name, row in rewards.items()}
            for player, rewards in found.items()
            if player in (TUNED, UNGATED, PRODUCTION)
        },
    }


def _means(rewards: Mapping[str, Floats]) -> dict[str, float]:
    means = {name: round(float(row.mean()), 4) for name, row in rewards.items()}
    return means | {"mean": round(fmean(means.values()), 4)}


def _curve(row: Floats) -> list[float]:
    return [round(float(part.mean()), 4) for part in np.array_split(row, len(row) // STEP)]


def _path(paths: Mapping[tuple[str, int], Played]) -> dict[str, Any]:
    """Return what the gate did: when a learned version decided first, and how many did."""
    return {
        f"{name}, seed {seed}": {
            "first_learned_choice": played.first_learned,
            "share_uniform": round(played.share_uniform, 3),
            "versions": {
                version: played.versions.count(version)
                for version in dict.fromkeys(played.versions)
            },
            "latest_round_s": round(played.late_s, 2),
        }
        for (name, seed), played in paths.items()
    }
