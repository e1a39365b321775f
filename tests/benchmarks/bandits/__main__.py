"""Measures the bandit and writes figures and charts: `python -m tests.benchmarks.bandits --out FILE [--chart FILE]`."""

import argparse
import sys
from pathlib import Path

import orjson

from schemas.clock import now
from tests.benchmarks.bandits import pubmedqa
from tests.benchmarks.bandits.comparison import compared
from tests.benchmarks.bandits.drawing import draw_curves
from tests.benchmarks.machine import machine

TASKS = Path(__file__).parents[3].parent / "shared" / "data" / "pubmedqa" / "ori_pqal.json"


def main() -> None:
    """Measure, print, and write the document and the chart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file for the figures")
    parser.add_argument("--chart", type=Path, help="file for the learning curves, .png or .svg")
    parser.add_argument("--tasks", type=Path, default=TASKS, help="PubMedQA's ori_pqal.json")
    options = parser.parse_args()
    results = {"comparison": compared()}
    if options.tasks.exists():
        results["pubmedqa"] = pubmedqa.measured(options.tasks, results["comparison"]["vw_tuning"]["best"])
    if options.chart:
        draw_curves(results["comparison"]["curves"], options.chart)
    document = {"time": now().isoformat(), "machine": machine(), "results": results}
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2)
    options.out.write_bytes(text + b"\n")
    sys.stdout.write(text.decode() + "\n")


if __name__ == "__main__":
    main()
