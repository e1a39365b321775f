"""A reader process: `python -m infra.gateway.http.reader FD`, started by the gateway.

It calls the functions that come on a socket, and sends back what they return or raise. It ends when
the gateway closes the socket, or dies.
"""

import gc
import os
import pickle
import signal
import socket
import sys

from infra.gateway.http.readers import read_message, write_message
from infra.runtime.logger import configure_logging

NICENESS = 5
"""Readers yield to the event loop where both want the same core."""


def main() -> None:
    """Answer until nobody can ask."""
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the gateway, which ends this too
    configure_logging()
    gateway = socket.socket(fileno=int(sys.argv[1]))
    # A document makes many objects that die at once, and hardly any cycles.
    gc.set_threshold(20_000, 20, 20)
    frozen = False
    while True:
        try:
            function, *arguments = read_message(gateway)
        except (EOFError, OSError):
            return
        try:
            result = function(*arguments)
            spread = isinstance(result, tuple)
            message = (True, spread, *result) if spread else (True, False, result)
        except Exception as error:  # noqa: BLE001 - it is raised in the gateway
            message = (False, False, _picklable(error))
        try:
            write_message(gateway, message)
        except OSError:
            return
        if not frozen:
            # What the first work imported stays. To walk over it again takes 50 ms.
            gc.collect()
            gc.freeze()
            frozen = True


def _picklable(error: Exception) -> Exception:
    """Return an error as it can be sent: itself, or its words."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - we wrote it a moment ago
    except Exception:  # noqa: BLE001 - whatever its class raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
