"""The gateway with a short memory for delays: `python -m tests.benchmarks.watched --fd N`.

Where that is allowed, it runs before all other processes, so that its delays are its own.
"""

import os
import sys
from contextlib import suppress

from infra.gateway.state import heartbeat
from infra.processes.entry import main

if __name__ == "__main__":
    heartbeat.WINDOW_S = 0.5
    with suppress(OSError):
        # Not its children: in production they do not run before others either.
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    sys.exit(main(["gateway", *sys.argv[1:]]))
