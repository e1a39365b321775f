"""What gateways add to a model call, and how many they serve with a core: this one and its peers,
in the same run.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

from infra.runtime.http import bound_socket
from tests.benchmarks.load import Load
from tests.benchmarks.machine import milliseconds
from tests.environments import UnavailableError, environment
from tests.infra.conftest import model_route, publish

CONCURRENCIES = (1, 32, 256)
DELAY_S = 0.05
CALLS = {1: 200, 32: 3200, 256: 5120}
SATURATING = 32
SATURATING_CALLS = 4000
PYTHON = "3.12"


@dataclass
class Server:
    """A running server, and how its chat completions are asked for."""

    process: psutil.Process | None
    port: int
    path: str = "/v1/chat/completions"
    model: str = "tiny"
    streams: bool = True
    headers: dict[str, str] = field(default_factory=dict)

    def load(self, concurrency: int, calls: int, stream: bool = False) -> Load:
        """Have it called; return what came of it."""
        load = Load(self.port, self.path, concurrency, calls, self.model, stream, self.headers)
        load.run()
        return load

    @property
    def cpu_s(self) -> float:
        """Processor time of the server and its children."""
        assert self.process is not None
        processes = [self.process, *self.process.children(recursive=True)]
        return float(sum(sum(p.cpu_times()[:2]) for p in processes))


def measured(folder: Path) -> dict[str, Any]:
    """Return what each gateway adds at each concurrency, and its calls for each second of its
    processor time.
    """
    gateways: dict[str, Callable[[ExitStack, Path, str], Server]] = {
        "everloop": _everloop,
        "agentlightning 1.0.2": _agent_lightning,
        "litellm": _litellm,
        "tensorzero (embedded)": _tensorzero,
    }
    results: dict[str, Any] = {
        "model_server": f"answers after {DELAY_S * 500:.0f} to {DELAY_S * 1500:.0f} ms"
    }
    for name, start in gateways.items():
        try:
            with ExitStack() as stack:
                results[name] = _measured(stack, start, folder / name.split()[0])
        except UnavailableError as error:
            results[name] = {"not measured": str(error)}
    ours = results["everloop"]["requests_per_core_s"]
    results["everloop_to"] = {
        name: round(ours / found["requests_per_core_s"], 2)
        for name, found in results.items()
        if name != "everloop" and isinstance(found, dict) and "requests_per_core_s" in found
    }
    return results


def _measured(
    stack: ExitStack, start: Callable[[ExitStack, Path, str], Server], folder: Path
) -> dict[str, Any]:
    folder.mkdir()
    slow = stack.enter_context(process("-m", "tests.benchmarks.stub", "--delay", str(DELAY_S)))
    direct = Server(None, slow.port)
    server = start(stack, folder / "slow", f"http://127.0.0.1:{slow.port}")
    server.load(8, 200)  # warm
    found: dict[str, Any] = {}
    for concurrency in CONCURRENCIES:
        for stream in (False, True) if server.streams else (False,):
            alone = direct.load(concurrency, CALLS[concurrency], stream)
            through = server.load(concurrency, CALLS[concurrency], stream)
            kind = "streamed" if stream else "whole"
            found[f"{kind}, {concurrency} callers"] = _added(alone, through)
    fast = stack.enter_context(process("-m", "tests.benchmarks.stub"))
    server = start(stack, folder / "fast", f"http://127.0.0.1:{fast.port}")
    server.load(8, 200)
    rates = []
    for _ in range(3):
        before = server.cpu_s
        load = server.load(SATURATING, SATURATING_CALLS)
        rates.append((SATURATING_CALLS - load.failed) / (server.cpu_s - before))
    return {"requests_per_core_s": round(median(rates)), "added": found}


def _added(alone: Load, through: Load) -> dict[str, Any]:
    """Return what a gateway added, beyond what the way to the model server and back takes by
    itself.
    """
    times = (through.first, alone.first) if through.first else (through.durations, alone.durations)
    own, bare = (milliseconds(seconds) for seconds in times)
    return {
        "p50_ms": round(own["p50_ms"] - bare["p50_ms"], 2),
        "p99_ms": round(own["p99_ms"] - bare["p99_ms"], 2),
        "requests_per_s": round(len(through.durations) / through.took),
        "failed": through.failed,
    }


@dataclass
class Started:
    """A process with its port."""

    process: psutil.Process
    port: int


@contextmanager
def process(*arguments: str, environment: dict[str, str] | None = None) -> Iterator[Started]:
    """Run a server of ours in a process of its own on a free port."""
    listener = bound_socket("127.0.0.1", 0, "port")
    command = [sys.executable, *arguments, "--fd", str(listener.fileno())]
    process = subprocess.Popen(
        command, pass_fds=[listener.fileno()], env=os.environ | (environment or {})
    )
    try:
        yield Started(psutil.Process(process.pid), listener.getsockname()[1])
    finally:
        process.terminate()
        process.wait()
        listener.close()


@contextmanager
def _program(command: list[str], folder: Path, ready: str | None, port: int) -> Iterator[Started]:
    """Run a peer until the block ends; its output goes to a file."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EVERLOOP_", "PYTHON"))
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=known, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + 120
            while ready is not None and not _answers(f"http://127.0.0.1:{port}{ready}"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise UnavailableError(
                        f"{command[0]} did not start: {(folder / 'log').read_text()[-500:]}"
                    )
                time.sleep(0.2)
            yield Started(psutil.Process(process.pid), port)
        finally:
            process.terminate()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code < 500
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    listener = bound_socket("127.0.0.1", 0, "port")
    port = int(listener.getsockname()[1])
    listener.close()
    return port


def _everloop(stack: ExitStack, folder: Path, upstream: str) -> Server:
    publish(folder / "log.db", model_route("tiny", upstream))
    started = stack.enter_context(
        process(
            "-m", "infra.processes.entry", "gateway", environment={"EVERLOOP_DATA_DIR": str(folder)}
        )
    )
    httpx.get(f"http://127.0.0.1:{started.port}/healthz", timeout=30)
    return Server(started.process, started.port)


def _agent_lightning(stack: ExitStack, folder: Path, upstream: str) -> Server:
    python = environment(PYTHON, "agentlightning==1.0.2", "numpy")
    port = _free_port()
    command = [
        python,
        "-m",
        "agentlightning.server",
        "host=127.0.0.1",
        f"port={port}",
        "default_proxy.model_name=tiny",
    ]
    started = stack.enter_context(_program(command, folder, "/healthz", port))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
        http.post(
            "/api/models", json=[{"model": "tiny", "endpoint": f"{upstream}/v1"}]
        ).raise_for_status()
        http.post("/api/rollouts", json=[{"input": "x", "rollout_id": "r"}]).raise_for_status()
    path = "/proxy/rollout/r/attempt/0/mode/val/openai/v1/chat/completions"
    return Server(started.process, port, path, streams=False)


def _litellm(stack: ExitStack, folder: Path, upstream: str) -> Server:
    python = environment(PYTHON, "litellm[proxy]==1.106.2", "uvloop")
    folder.mkdir(parents=True)
    parameters = f"{{model: openai/tiny, api_base: '{upstream}/v1', api_key: none}}"
    (folder / "config.yaml").write_text(
        f"model_list:\n  - model_name: tiny\n    litellm_params: {parameters}\n"
        "general_settings:\n  dangerously_permit_weak_or_unset_master_key: true\n"
    )
    port = _free_port()
    program = str(Path(python).with_name("litellm"))
    command = [program, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    started = stack.enter_context(_program(command, folder, "/health/liveliness", port))
    return Server(started.process, port)


def _tensorzero(stack: ExitStack, folder: Path, upstream: str) -> Server:
    python = environment(PYTHON, "tensorzero==2026.6.0", "openai")
    folder.mkdir(parents=True)
    (folder / "tensorzero.toml").write_text(
        "[gateway]\nobservability.enabled = false\n"
        '[models.tiny]\nrouting = ["stub"]\n'
        '[models.tiny.providers.stub]\ntype = "openai"\nmodel_name = "tiny"\napi_base ='
        f' "{upstream}/v1/"\n'
        'api_key_location = "none"\n'
    )
    script = Path(__file__).parents[1] / "peers" / "tensorzero_gateway.py"
    started = stack.enter_context(
        _program([python, str(script), "tensorzero.toml"], folder, None, 0)
    )
    deadline = time.monotonic() + 60
    while not (
        said := [
            line for line in (folder / "log").read_text().splitlines() if line.startswith("http://")
        ]
    ):
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"TensorZero did not start: {(folder / 'log').read_text()[-500:]}"
            )
        time.sleep(0.1)
    url = httpx.URL(said[0])
    path = url.path.rstrip("/") + "/chat/completions"
    return Server(started.process, url.port or 80, path, model="tensorzero::model_name::tiny")
