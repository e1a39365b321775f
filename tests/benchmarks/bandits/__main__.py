"""Measures the bandit: `python -m tests.benchmarks.bandits --out FILE [--chart FILE] [--only NAME
…]`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import orjson

from schemas.clock import now
from tests.benchmarks.bandits import pubmedqa, simulation, stability
from tests.benchmarks.bandits.comparison import compared
from tests.benchmarks.bandits.drawing import draw_curves
from tests.benchmarks.machine import machine

TASKS = Path(__file__).parents[3].parent / "shared" / "data" / "pubmedqa" / "ori_pqal.json"
PARTS = ("comparison", "pubmedqa", "simulation", "stability")
TUNED = "softmax 20, rate 5.0"
"""What did best of Vowpal Wabbit when the comparison was last run; used where it is not run."""


def main() -> None:
    """Measure, print, and write the document and the chart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file for the figures")
    parser.add_argument("--chart", type=Path, help="file for the learning curves, .png or .svg")
    parser.add_argument("--tasks", type=Path, default=TASKS, help="PubMedQA's ori_pqal.json")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="which to run")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    if "comparison" in options.only:
        results["comparison"] = compared()
        if options.chart:
            draw_curves(results["comparison"]["curves"], options.chart)
    if "pubmedqa" in options.only and options.tasks.exists():
        best = results["comparison"]["vw_tuning"]["best"] if "comparison" in results else TUNED
        results["pubmedqa"] = pubmedqa.measured(options.tasks, best)
    if "simulation" in options.only:
        results["simulation"] = simulation.measured()
    if "stability" in options.only:
        results["stability"] = stability.measured()
    document = {"time": now().isoformat(), "machine": machine(), "results": results}
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2)
    options.out.write_bytes(text + b"\n")
    sys.stdout.write(text.decode() + "\n")


if __name__ == "__main__":
    main()
