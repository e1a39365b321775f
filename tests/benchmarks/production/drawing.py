"""Learning curves as a picture."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from infra.analytics.charts import COLOURS
from tests.benchmarks.production.report import STEP

mpl.use("Agg")
COLUMNS = 4


def draw_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw one panel a problem: the mean reward of each `STEP` rounds over all seeds, a line a
    player.
    """
    problems = list(next(iter(curves.values())))
    rows = ceil(len(problems) / COLUMNS)
    figure = Figure(figsize=(14, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel, problem in zip(panels, problems, strict=False):
        for colour, (player, of) in zip(COLOURS, curves.items(), strict=False):
            rounds = [STEP * (number + 1) for number in range(len(of[problem]))]
            panel.plot(rounds, of[problem], color=colour, label=player)
        panel.set_title(problem)
    for panel in panels[len(problems) :]:
        panel.set_axis_off()
    panels[0].legend(loc="lower right", fontsize="small")
    panels[0].set_ylabel(f"mean reward of {STEP} rounds")
    figure.savefig(path, dpi=110)
