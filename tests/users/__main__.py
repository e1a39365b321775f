"""Let the users work, print how many rollouts each took, and draw the share of the better option.

`python -m tests.users --chart users.png`
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from infra.analytics.charts import COLOURS
from tests.users.program import ENOUGH, STEP, Curve
from tests.users.workplace import users_at_work

mpl.use("Agg")


def main() -> None:
    """Run all users once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chart", type=Path)
    chart = parser.parse_args().chart
    with tempfile.TemporaryDirectory() as folder, users_at_work(Path(folder)) as users:
        curves = {agent: curve.result() for agent, curve in users.items()}
    for agent, curve in curves.items():
        print(f"{agent:8} {curve}")
    if chart is not None:
        draw(curves, chart)


def draw(curves: Mapping[str, Curve], path: Path) -> None:
    """Draw one panel a user."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    for panel, (agent, curve) in zip(panels, curves.items(), strict=True):
        rollouts = [STEP * (number + 1) for number in range(len(curve.steps))]
        panel.plot(rollouts, curve.steps, color=COLOURS[0])
        panel.axhline(ENOUGH, color=COLOURS[1], linewidth=0.8, linestyle="--")
        panel.set_title(f"{agent}: {curve.needed}")
        panel.set_ylim(0, 1)
    panels[3].set_ylabel("share of the better option")
    panels[4].set_xlabel("rollout")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
