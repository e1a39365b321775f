"""A Kafka cluster of this machine: one broker or several, each a child process with a folder of its
own (KRaft).
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import psutil
from kafka import KafkaAdminClient
from kafka.errors import KafkaError
from pydantic import BaseModel

from infra.kafka.jars import jars, java
from infra.runtime.errors import ConfigError
from infra.runtime.pids import is_running

HOST = "127.0.0.1"
STATE_FILE = "cluster.json"
READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
JAVA_OPTIONS = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""For a cluster that shares a small machine with everything else: small heaps, fast start."""

_LOG4J = """\
status = warn
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %m (%c)%n
rootLogger.level = {level}
rootLogger.appenderRef.out.ref = out
"""


class Broker(BaseModel):
    """One broker, which is a controller too.

    Attributes:
        created: when its process began, in seconds since the epoch; tells it from a later one with
            its pid.
    """

    id: int
    port: int
    controller_port: int
    pid: int = 0
    created: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return is_running(self.pid, self.created)


class _Description(BaseModel):
    cluster_id: str
    brokers: list[Broker]


class LocalCluster:
    """Brokers on free ports of the loopback interface. The data in the folder survives `stop`.

    Args:
        folder: for the brokers' data, configurations and logs.
        more: returns properties of a broker that are set over the usual ones.
    """

    def __init__(
        self, folder: Path, more: Callable[[Broker], Mapping[str, object]] = lambda _: {}
    ) -> None:
        self._more = more
        self.folder = folder.absolute()
        self._state = self.folder / STATE_FILE
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def brokers(self) -> list[Broker]:
        """The brokers of the folder, running or not; none before the first start."""
        return self._description().brokers if self._state.exists() else []

    @property
    def bootstrap(self) -> str:
        """Addresses of all brokers, as `host:port,host:port`."""
        return ",".join(f"{HOST}:{broker.port}" for broker in self.brokers)

    def start(self, brokers: int = 1) -> None:
        """Start what does not run yet and return when the cluster answers.

        Args:
            brokers: how many; a folder that has a cluster keeps its number.

        Raises:
            ConfigError: Java or Maven is missing, another number was asked for, or the cluster does
                not come up.
        """
        description = self._description() if self._state.exists() else self._create(brokers)
        if len(description.brokers) != brokers:
            raise ConfigError(
                f"{self.folder} holds a cluster of {len(description.brokers)} brokers, not"
                f" {brokers};"
                " choose that number or another folder"
            )
        # Looked up before anything is started: a missing Java must not leave half a cluster.
        runtime, classpath = java(), f"{jars()}/*"
        for broker in description.brokers:
            if not broker.alive:
                self._start(broker, runtime, classpath)
        self._write(description)
        self._wait_until_ready(description)

    def stop(self) -> None:
        """Stop every broker. A broker that does not stop in time is killed."""
        processes = [psutil.Process(broker.pid) for broker in self.brokers if broker.alive]
        for process in processes:
            process.terminate()
        # All at once: the last broker of a cluster would wait for the others, to hand over what it
        # leads.
        _, left = psutil.wait_procs(processes, STOP_TIMEOUT_S)
        for process in left:
            process.kill()
        self._reap()

    def kill(self, broker_id: int) -> None:
        """Kill a broker with SIGKILL; `start` brings it back with its data."""
        process = psutil.Process(
            next(broker.pid for broker in self.brokers if broker.id == broker_id)
        )
        process.kill()
        process.wait(STOP_TIMEOUT_S)
        self._reap()

    def log_file(self, broker_id: int) -> Path:
        """Return where a broker's output is kept."""
        return self.folder / f"broker-{broker_id}.log"

    def _create(self, count: int) -> _Description:
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:  # all at once, so that no port is given twice
            ports = [_free_port(held) for _ in range(2 * count)]
        members = [
            Broker(id=i + 1, port=ports[2 * i], controller_port=ports[2 * i + 1])
            for i in range(count)
        ]
        runtime, classpath = java(), f"{jars()}/*"
        said = _run(runtime, classpath, "kafka.tools.StorageTool", "random-uuid")
        description = _Description(cluster_id=said.strip().splitlines()[-1], brokers=members)
        (self.folder / "log4j2.properties").write_text(_LOG4J.format(level="warn"))
        for broker in members:
            properties = self.folder / f"broker-{broker.id}.properties"
            settings = self._properties(broker, members) | dict(self._more(broker))
            properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
            # Left by a start that was interrupted. Kafka refuses to format a folder that has data.
            shutil.rmtree(self.folder / f"data-{broker.id}", ignore_errors=True)
            _run(
                runtime, classpath, "kafka.tools.StorageTool", "format",
                "-t", description.cluster_id, "-c", str(properties),
            )  # fmt: skip
        return description

    def _properties(self, broker: Broker, members: list[Broker]) -> dict[str, object]:
        replicas = min(3, len(members))
        return {
            "process.roles": "broker,controller",
            "node.id": broker.id,
            "controller.quorum.voters": ",".join(
                f"{m.id}@{HOST}:{m.controller_port}" for m in members
            ),
            "listeners": f"PLAINTEXT://{HOST}:{broker.port},CONTROLLER://{HOST}:{broker.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{broker.port}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": self.folder / f"data-{broker.id}",
            "auto.create.topics.enable": "false",
            "default.replication.factor": replicas,
            # Two of three: a broker may be down and writes go on, and no acknowledged record is on
            # one disk only.
            "min.insync.replicas": min(2, replicas),
            "offsets.topic.replication.factor": replicas,
            # The default of 50 partitions takes seconds to create.
            "offsets.topic.num.partitions": 8,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": min(2, replicas),
            # The default waits three seconds for more members of a new group.
            "group.initial.rebalance.delay.ms": 0,
            "log.retention.check.interval.ms": 5000,
            "log.cleaner.backoff.ms": 1000,
            "log.segment.delete.delay.ms": 1000,
        }

    def _start(self, broker: Broker, runtime: str, classpath: str) -> None:
        with self.log_file(broker.id).open("ab") as output:
            child = subprocess.Popen(  # noqa: S603 - our own command
                [
                    runtime,
                    *JAVA_OPTIONS,
                    f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
                    "-cp",
                    classpath,
                    "kafka.Kafka",
                    str(self.folder / f"broker-{broker.id}.properties"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # it outlives the command that started it, and its Ctrl-C
            )
        self._children[broker.id] = child
        broker.pid, broker.created = child.pid, psutil.Process(child.pid).create_time()

    def _wait_until_ready(self, description: _Description) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._answers(len(description.brokers)):
            for broker in description.brokers:
                if not broker.alive:
                    raise ConfigError(
                        f"Kafka's broker {broker.id} ended; see {self.log_file(broker.id)}"
                    )
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"Kafka did not answer in {READY_TIMEOUT_S:.0f} s; see {self.log_file(1)}"
                )
            time.sleep(0.2)

    def _answers(self, brokers: int) -> bool:
        for broker in self.brokers:
            try:
                socket.create_connection((HOST, broker.port), timeout=1).close()
            except OSError:
                return False
        try:
            with KafkaAdminClient(
                bootstrap_servers=self.bootstrap.split(","), request_timeout_ms=5000
            ) as admin:
                # Each broker takes connections before it has joined the others.
                return len(admin.describe_cluster()["brokers"]) == brokers
        except KafkaError:
            return False

    def _reap(self) -> None:
        """Wait for the children that were told to end."""
        alive = {broker.id for broker in self.brokers if broker.alive}
        for broker_id in self._children.keys() - alive:
            self._children.pop(broker_id).wait()

    def _description(self) -> _Description:
        return _Description.model_validate_json(self._state.read_bytes())

    def _write(self, description: _Description) -> None:
        partial = self._state.with_suffix(".partial")
        partial.write_text(description.model_dump_json())
        partial.replace(self._state)


def _run(runtime: str, classpath: str, *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603 - our own command
        [runtime, *JAVA_OPTIONS, "-cp", classpath, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise ConfigError(
            f"Kafka's {arguments[0]} failed: {words[-1] if words else 'nothing was said'}"
        )
    return done.stdout


def _free_port(held: ExitStack) -> int:
    listener = held.enter_context(socket.socket())
    listener.bind((HOST, 0))
    return int(listener.getsockname()[1])
