"""Runs every benchmark and prints one JSON document: `python -m tests.benchmarks [--out FILE]`."""

import argparse
import sys
import tempfile
from pathlib import Path

import orjson

from schemas.clock import now
from tests.benchmarks import gateway, streams
from tests.benchmarks.machine import machine

BENCHMARKS = {"streams": streams.measured, "gateway": gateway.measured}


def main() -> None:
    """Measure, print, and write the document where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file for the document as well")
    options = parser.parse_args()
    results = {}
    for name, measured in BENCHMARKS.items():
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measured(Path(folder))
    document = {"time": now().isoformat(), "machine": machine(), "results": results}
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_bytes(text + b"\n")
    sys.stdout.write(text.decode() + "\n")


if __name__ == "__main__":
    main()
