"""The supervisor: starts the processes, starts a process again that died, and stops them all.

It binds the listening sockets itself and lends them to the processes. So a port that is taken is
known before anything runs. And a server that died is replaced without a refused connection:
connections wait in the queue of the socket.

It binds the listening sockets itself and lends them to the processes, so a port that is taken is
known before anything runs, and a server that dies is replaced without a connection being refused:
it waits in the socket's queue.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import structlog

from infra.config.settings import Settings
from infra.installation.apps import load_app
from infra.installation.log import open_log
from infra.installation.routes import publish_initial_routes
from infra.installation.topics import missing_topics
from infra.processes.run_file import (
    RUN_FILE,
    Running,
    RunningProcess,
    StartError,
    running_installation,
)
from infra.runtime.http import bound_socket

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
RESTART_DELAYS_S = (0.1, 0.5, 1.0, 2.0, 5.0)
STEADY_AFTER_S = 30.0
logger = structlog.get_logger(__name__)


@dataclass
class Process:
    """One supervised process."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    listener: socket.socket | None = None
    restarts: int = 0
    started: float = 0.0
    popen: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it, with its output appended to its log."""
        fds = (self.listener.fileno(),) if self.listener else ()
        with self.log.open("ab") as output:
            self.popen = subprocess.Popen(  # noqa: S603 - our own command
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C is for the supervisor, which stops them in order
            )
        self.started = time.monotonic()

    @property
    def pid(self) -> int:
        """Process id of the running instance."""
        return self.popen.pid if self.popen else 0

    def last_words(self) -> str:
        """Return the last line of its log."""
        lines = (
            self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        )
        return lines[-1] if lines else "nothing was logged"


class Supervisor:
    """Runs an installation on this machine.

    Args:
        settings: with the ports to take; port 0 takes free ones.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._listeners: dict[str, socket.socket] = {}
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="supervisor")
        self.processes: dict[str, Process] = {}

    @property
    def gateway_url(self) -> str:
        """Where the gateway answers."""
        return self._url("gateway")

    def start(self) -> None:
        """Bind the sockets, start all processes, and return when the gateway serves.

        Raises:
            ConfigError: a port is taken.
            StartError: a process does not come up.
        """
        if (other := running_installation(self._settings.data_dir)) is not None:
            raise StartError(
                f"Everloop already runs on {self._settings.data_dir} (pid {other.pid}); stop it"
                " with `everloop down`"
            )
        self._settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._check_log()
        try:
            self._bind()
            apps = {name: self._url(name) for name in self._settings.apps}
            # After binding, which gives the ports; before the gateway, which reads the routes when
            # it starts.
            publish_initial_routes(self._settings, apps)
            self._start_processes()
            self._wait_until_ready()
        # Also on Ctrl-C: no process may outlive a start that failed.
        except BaseException:
            self.stop()
            raise
        self._write_run_file()
        self._watcher.start()

    def run(self) -> None:
        """Watch over the processes until SIGINT, SIGTERM or `stop`."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        self._stop.wait()
        self.stop()

    def stop(self) -> None:
        """Stop all. The servers come last, so that workers still get answers."""
        # First, or the watcher would start again what is stopped below.
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for process in self.processes.values():
            _terminate(process)
        for listener in self._listeners.values():
            listener.close()
        (self._settings.data_dir / RUN_FILE).unlink(missing_ok=True)

    def _check_log(self) -> None:
        """Check that the log can be opened. An embedded log is created; a cluster must have the
        topics.
        """
        open_log(self._settings).close()
        if self._settings.log_kind == "kafka" and (missing := missing_topics(self._settings)):
            names = ", ".join(missing)
            raise StartError(
                f"Kafka at {self._settings.cluster.bootstrap} lacks {names}; `everloop topics"
                " apply` declares them"
            )

    def _bind(self) -> None:
        settings = self._settings
        wanted = [("gateway", settings.gateway.host, settings.gateway.port)]
        wanted.append(("analytics", settings.analytics.host, settings.analytics.port))
        for name, app in settings.apps.items():
            load_app(name, app)  # a mistake is said before anything runs
            wanted.append((name, app.host, app.port))
        for name, host, port in wanted:
            self._listeners[name] = bound_socket(host, port, f"{name}.port")

    def _start_processes(self) -> None:
        logs = self._settings.data_dir / "logs"
        logs.mkdir(exist_ok=True)
        environment = (
            os.environ
            | self._settings.environment
            | {
                "EVERLOOP_ANALYTICS__DSN": self._settings.analytics_dsn,
                # A demonstration changes the gate in this process only.
                "EVERLOOP_GATE": self._settings.gate.model_dump_json(),
                # Port 0 has become a number, which the judge must know.
                "EVERLOOP_GATEWAY__PORT": str(self._port("gateway")),
            }
        )
        # They are stopped in this order, too. The gateway comes last, because workers may ask it.
        ours = ("trainer", "learner", "worker", "analytics", "gateway")
        for name in (*ours, *self._settings.apps):
            listener = self._listeners.get(name)
            if name == "trainer" and not self._settings.training.models:
                continue
            if name == "learner" and not self._settings.policies:
                continue
            command = [sys.executable, "-m", "infra.processes.entry", name]
            if listener is not None:
                command += ["--fd", str(listener.fileno())]
            process = Process(name, command, environment, logs / f"{name}.log", listener)
            process.start()
            self.processes[name] = process

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        with httpx.Client(timeout=1.0) as http:
            for name in self._listeners:
                while not self._answers(http, name):
                    self._check_processes()
                    if time.monotonic() > deadline:
                        raise StartError(
                            f"no answer from {self._url(name)} in {START_TIMEOUT_S:.0f} s"
                        )
                    time.sleep(0.02)

    def _answers(self, http: httpx.Client, name: str) -> bool:
        """Return whether a server is ready. An application of the user's is ready when it answers
        at all.
        """
        try:
            answer = http.get(f"{self._url(name)}/healthz")
        except httpx.HTTPError:
            return False
        return answer.is_success or name in self._settings.apps

    def _check_processes(self) -> None:
        """Raise StartError if a process has ended."""
        for process in self.processes.values():
            if process.popen is not None and process.popen.poll() is not None:
                raise StartError(
                    f"{process.name} did not start: {process.last_words()} (see {process.log})"
                )

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            for process in self.processes.values():
                if process.popen is None or process.popen.poll() is None:
                    continue
                steady = time.monotonic() - process.started > STEADY_AFTER_S
                delay = RESTART_DELAYS_S[
                    0 if steady else min(process.restarts, len(RESTART_DELAYS_S) - 1)
                ]
                logger.warning(
                    "process died, starting it again",
                    process=process.name,
                    status=process.popen.returncode,
                    last_words=process.last_words(),
                )
                # Wait longer after each death: a process that dies at once would take all the time
                # of a core.
                if self._stop.wait(delay):
                    return
                process.restarts += 1
                process.start()
                self._write_run_file()

    def _write_run_file(self) -> None:
        Running(
            pid=os.getpid(),
            created=psutil.Process().create_time(),
            urls={name: self._url(name) for name in self._listeners},
            processes={
                name: RunningProcess(pid=process.pid, restarts=process.restarts, log=process.log)
                for name, process in self.processes.items()
            },
        ).write(self._settings.data_dir)

    def _port(self, name: str) -> int:
        return int(self._listeners[name].getsockname()[1])

    def _url(self, name: str) -> str:
        host = self._listeners[name].getsockname()[0]
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port(name)}"


def _terminate(process: Process) -> None:
    if process.popen is None or process.popen.poll() is not None:
        return
    process.popen.terminate()
    try:
        process.popen.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        logger.warning("process did not stop, killing it", process=process.name)
        # A process that hangs must not keep its partitions and its port.
        process.popen.kill()
        process.popen.wait()
