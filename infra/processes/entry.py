"""The entry of each process: `python -m infra.processes.entry NAME [--fd N]`. The supervisor starts
it.
"""

import argparse
import gc
import os
import signal
import socket
import sys
from typing import Any

from infra.config.settings import Settings, load_settings
from infra.installation.processors import learning_processors, stream_processors
from infra.installation.routes import publish_initial_routes
from infra.runtime.errors import ConfigError
from infra.runtime.logger import configure_logging
from streams.processing.processor import Processor
from streams.runners.embedded.worker import Worker
from streams.storage.errors import StreamError

NAMES = ("routes", "gateway", "worker", "learner", "trainer", "analytics")
"""The processes. `routes` writes the first routes and ends. Gateway and analytics listen on a
socket, and so does each application of the user's (`apps.NAME`), which is a process of its name.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one process until SIGTERM or SIGINT; return its exit status."""
    parser = argparse.ArgumentParser(prog="everloop process")
    parser.add_argument("name", help=f"{', '.join(NAMES)}, or an application of `apps`")
    parser.add_argument("--fd", type=int, help="listening socket, inherited from the supervisor")
    options = parser.parse_args(arguments)
    configure_logging()
    try:
        _run(options.name, load_settings(), options.fd)
    except (ConfigError, StreamError) as error:
        sys.stderr.write(f"everloop {options.name}: {error}\n")
        return 2
    return 0


def _run(name: str, settings: Settings, fd: int | None) -> None:
    if name not in NAMES and name not in settings.apps:
        known = ", ".join([*NAMES, *settings.apps])
        raise ConfigError(f"there is no process {name!r}; there are: {known}")
    if name == "routes":
        publish_initial_routes(settings, {})
    elif name == "worker":
        _work(settings, stream_processors(settings))
    elif name == "learner":
        _work(settings, list(learning_processors(settings)))
    elif name == "trainer":
        _train(settings)
    else:
        _serve(name, settings, fd)


def _train(settings: Settings) -> None:
    """Run the trainer."""
    from infra.installation.log import open_log
    from infra.installation.training import configured_trainer

    with open_log(settings) as log:
        trainer = configured_trainer(settings, log)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: trainer.stop())
        trainer.run()


def _work(settings: Settings, processors: list[Processor[Any]]) -> None:
    """Run processors on the configured log."""
    _freeze()
    if settings.log_kind == "kafka":
        from streams.runners.kafka.faust_app import run_app

        run_app(settings.cluster, processors, settings.data_dir, settings.worker.lease_s)
        return
    worker = Worker(
        settings.log_path,
        processors,
        f"{socket.gethostname()}:{os.getpid()}",
        lease_s=settings.worker.lease_s,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    worker.run()


def _freeze() -> None:
    """Keep the garbage collector from looking at imported modules: that costs more than most events
    do.

    The gateway's slowest calls at 32 callers went from 190 ms to 20 ms by it (p99).
    """
    # Garbage must be gone before: what is frozen is never collected.
    gc.collect()
    gc.freeze()
    # Events make many objects that die at once. With the default of 700, the collector runs all the
    # time.
    gc.set_threshold(20_000, 20, 20)


def _serve(name: str, settings: Settings, fd: int | None) -> None:
    """Serve an application; imports are here, so that no process loads what only another needs."""
    from infra.runtime.http import bound_socket, serve

    if name == "gateway":
        from infra.installation.apps import gateway_app

        app, host, port = gateway_app(settings), settings.gateway.host, settings.gateway.port
    elif name in settings.apps:
        from infra.installation.apps import load_app

        own = settings.apps[name]
        app, host, port = load_app(name, own), own.host, own.port
    else:
        from infra.installation.apps import analytics_app

        app, host, port = (
            analytics_app(settings),
            settings.analytics.host,
            settings.analytics.port,
        )
    _freeze()
    serve(
        app,
        socket.socket(fileno=fd) if fd is not None else bound_socket(host, port, f"{name}.port"),
    )


if __name__ == "__main__":
    sys.exit(main())
