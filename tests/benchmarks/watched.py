"""The gateway with a short memory for delays: `python -m tests.benchmarks.watched --fd N`."""

import sys

from infra.gateway.state import heartbeat
from infra.processes.entry import main

if __name__ == "__main__":
    heartbeat.WINDOW_S = 0.5
    sys.exit(main(["gateway", *sys.argv[1:]]))
