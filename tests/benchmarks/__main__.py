"""Runs every benchmark and prints one JSON document: `python -m tests.benchmarks [--only NAME …]
[--out FILE]`.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import orjson

from schemas.clock import now
from tests.benchmarks import decisions, delays, gateway, kafka, replay, streams, switches
from tests.benchmarks.machine import machine

BENCHMARKS = {
    "streams": streams.measured,
    "replay": replay.measured,
    "kafka": kafka.measured,
    "gateway": gateway.measured,
    "switches": switches.measured,
    "decisions": decisions.measured,
    "delays": delays.measured,
}


def main() -> None:
    """Measure, print, and write the document where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file for the document as well")
    parser.add_argument(
        "--only", choices=BENCHMARKS, nargs="+", default=list(BENCHMARKS), help="which to run"
    )
    options = parser.parse_args()
    results = {}
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = BENCHMARKS[name](Path(folder))
    document = {"time": now().isoformat(), "machine": machine(), "results": results}
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_bytes(text + b"\n")
    sys.stdout.write(text.decode() + "\n")


if __name__ == "__main__":
    main()
