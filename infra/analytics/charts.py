"""Charts of a report, drawn from its numbers alone."""

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infra.analytics.report import ROLLING, Report

# Draws into files, and needs no display.
mpl.use("Agg")
COLOURS = ("#1f6feb", "#8b949e", "#bf8700", "#8250df")


def learning_curve(report: Report, axes: Axes) -> None:
    """Draw each reward as a dot, and the mean of the last ten as a line, in one colour a group."""
    for colour, group in zip(COLOURS, (g for g in report.groups if g.curve), strict=False):
        rollouts = range(1, len(group.curve) + 1)
        axes.plot(rollouts, group.curve, ".", color=colour, alpha=0.25, markersize=4)
        axes.plot(
            rollouts, group.rolling, color=colour, label=f"{group.group} (mean of last {ROLLING})"
        )
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("rollout, in the order they closed")
    axes.set_ylabel("reward")
    axes.set_title("Reward per rollout")
    if axes.has_data():
        axes.legend(loc="lower right")
    else:
        axes.text(0.5, 0.5, "no rewards on the log yet", ha="center", transform=axes.transAxes)


def latency(report: Report, axes: Axes) -> None:
    """Draw the median and the 95th percentile of each node's model calls."""
    nodes = [node for node in report.nodes if node.operation == "chat"]
    places = range(len(nodes))
    axes.barh(list(places), [node.p95_s * 1000 for node in nodes], color=COLOURS[1], label="p95")
    axes.barh(list(places), [node.p50_s * 1000 for node in nodes], color=COLOURS[0], label="p50")
    axes.set_yticks(list(places), [node.node for node in nodes])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds")
    axes.set_title("Latency of model calls by node")
    if nodes:
        axes.legend(loc="lower right")


def as_svg(draw: Callable[[Report, Axes], None], report: Report) -> str:
    """Return a chart as an SVG element."""
    text = io.StringIO()
    _figure(draw, report).savefig(text, format="svg")
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def write_png(report: Report, path: Path) -> None:
    """Write the learning curve as a picture."""
    _figure(learning_curve, report).savefig(path, dpi=150)


def _figure(draw: Callable[[Report, Axes], None], report: Report) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(report, axes)
    return figure
