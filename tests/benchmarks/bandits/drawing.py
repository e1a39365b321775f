"""Learning curves as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from infra.analytics.charts import COLOURS
from tests.benchmarks.bandits.comparison import CURVE_STEP

mpl.use("Agg")


def draw_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw one panel a problem: the mean reward of each `CURVE_STEP` rounds, over all seeds, a line
    a player.
    """
    problems = list(next(iter(curves.values())))
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True).ravel()
    for panel, problem in zip(panels, problems, strict=True):
        for colour, (player, of) in zip(
            (COLOURS[0], COLOURS[2], COLOURS[1]), curves.items(), strict=True
        ):
            rounds = [CURVE_STEP * (number + 1) for number in range(len(of[problem]))]
            panel.plot(rounds, of[problem], color=colour, label=player)
        panel.set_title(problem)
    panels[0].legend(loc="lower right")
    panels[3].set_ylabel(f"mean reward of {CURVE_STEP} rounds")
    panels[4].set_xlabel("round")
    figure.savefig(path, dpi=110)
