"""`make bench-convergence`: rollouts until the better option serves 90 %, in each world."""

import json
import logging
import tempfile
from dataclasses import dataclass
from itertools import islice, product
from math import inf
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import structlog
import typer

from schemas.clock import now
from streams.storage.artifacts import ArtifactStore
from tests.benchmarks.convergence.loop import PER_SECOND, Loop
from tests.benchmarks.convergence.worlds import WORLDS
from tests.benchmarks.machine import machine
from tests.users.program import Curve

DELAYS = (0.05, 20.0)
"""Seconds until a reward comes."""

NEWEST = 500


@dataclass(frozen=True)
class Game:
    """A world that is played once."""

    world: str
    delay: float
    seed: int
    rollouts: int

    def play(self) -> Curve:
        """Return which rollouts chose the better option."""
        with tempfile.TemporaryDirectory() as folder:
            loop = Loop(ArtifactStore(Path(folder)), self.delay, self.seed)
            asked = islice(WORLDS[self.world](self.seed), self.rollouts)
            return Curve([float(loop.roll_out(one)) for one in asked])


def summed_up(curves: list[Curve]) -> dict[str, Any]:
    """Return the figures of one world and delay; `median` is null where most never got there."""
    needed = [curve.needed for curve in curves]
    middle = median(inf if count is None else count for count in needed)
    return {
        "needed": needed,
        "median_needed": None if middle == inf else middle,
        "better_of_all": round(fmean(fmean(curve.shares) for curve in curves), 4),
        "better_of_newest": round(fmean(fmean(curve.shares[-NEWEST:]) for curve in curves), 4),
        "curves": [str(curve) for curve in curves],
    }


def _play(game: Game) -> Curve:
    return game.play()


def main(
    out: Annotated[Path, typer.Option()] = Path("bench-convergence.json"),
    seeds: Annotated[int, typer.Option(min=1)] = 6,
    rollouts: Annotated[int, typer.Option(min=NEWEST)] = 2000,
    only: Annotated[str, typer.Option(help="worlds whose name holds this")] = "",
) -> None:
    """Play each world with each delay, and write when the better option served."""
    # Each switch of a route is said; here there are hundreds.
    level = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(wrapper_class=level)
    document: dict[str, Any] = {
        "time": now().isoformat(),
        "machine": machine(),
        "setting": {"seeds": seeds, "rollouts": rollouts, "rollouts_per_second": PER_SECOND},
        "results": [],
    }
    with get_context("fork").Pool() as pool:
        for world, delay in product((name for name in WORLDS if only in name), DELAYS):
            games = [Game(world, delay, seed, rollouts) for seed in range(seeds)]
            row = {"world": world, "delay_s": delay} | summed_up(pool.map(_play, games, 1))
            document["results"].append(row)
            typer.echo(
                f"{world}, rewards after {delay:g} s: 90 % after {row['needed']},"
                f" of the newest {NEWEST} {row['better_of_newest']:.3f}"
            )
            out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
