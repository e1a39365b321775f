"""Measures the path of production: `python -m tests.benchmarks.production --out FILE [--chart
FILE]`.
"""

import argparse
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import orjson

from schemas.clock import now
from tests.benchmarks.machine import machine
from tests.benchmarks.production import installation
from tests.benchmarks.production.drawing import draw_curves
from tests.benchmarks.production.players import GRID, Floats, Ungated, Uniform, VowpalWabbit, earned
from tests.benchmarks.production.problems import DELAY, LATE, ROUNDS, TASKS, TOLD, problems
from tests.benchmarks.production.report import compared

SEEDS = (0, 1)
Game = tuple[str, str, int]
"""A player, a problem and a seed."""


def main() -> None:
    """Measure, print, and write the document and the chart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file for the figures")
    parser.add_argument("--chart", type=Path, help="file for the learning curves, .png or .svg")
    parser.add_argument("--tasks", type=Path, default=TASKS, help="PubMedQA's ori_pqal.json")
    parser.add_argument("--only", nargs="+", help="problems to play, by name; all if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of rounds and choices")
    parser.add_argument("--no-http", action="store_true", help="leave the installation out")
    options = parser.parse_args()
    names = options.only or list(problems(options.tasks))
    games = [(name, seed) for name in names for seed in options.seeds]
    played = _in_process(options.tasks, games)
    paths = None if options.no_http else _by_http(options.tasks, games)
    results = compared(played, paths)
    document = {
        "time": now().isoformat(),
        "machine": machine(),
        "setting": {
            "rounds": ROUNDS,
            "seeds": list(options.seeds),
            "rounds_per_second_of_a_policy": installation.PER_S,
            "reward_known_after_rounds": DELAY,
            "late_rewards_known_after_rounds": LATE,
            "share_of_rewards_told_where_most_are_missing": TOLD,
            "vw_settings_tried": len(GRID),
        },
        "results": results,
    }
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2)
    options.out.write_bytes(text + b"\n")
    sys.stdout.write(text.decode() + "\n")
    if options.chart:
        draw_curves(results["curves"], options.chart)


def _in_process(tasks: Path, games: list[tuple[str, int]]) -> dict[Game, Floats]:
    """Return the rewards of all players that need no installation."""
    players = ["uniform", "ungated", *GRID]
    with get_context("fork").Pool() as pool:
        found = pool.starmap(
            _played, [(tasks, players, name, seed) for name, seed in games], chunksize=1
        )
    return {
        (player, name, seed): rewards[player]
        for (name, seed), rewards in zip(games, found, strict=True)
        for player in players
    }


def _played(tasks: Path, players: list[str], name: str, seed: int) -> dict[str, Floats]:
    turns = problems(tasks)[name](seed)
    ours = {"uniform": Uniform, "ungated": Ungated}
    return {
        player: earned(
            ours[player](seed) if player in ours else VowpalWabbit(seed, GRID[player]), turns
        )
        for player in players
    }


def _by_http(
    tasks: Path, games: list[tuple[str, int]]
) -> dict[tuple[str, int], installation.Played]:
    made = problems(tasks)
    turns = {f"policy-{place}": made[name](seed) for place, (name, seed) in enumerate(games)}
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = installation.played(Path(folder), turns)
    return dict(zip(games, found.values(), strict=True))


if __name__ == "__main__":
    main()
