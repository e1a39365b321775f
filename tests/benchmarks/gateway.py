"""What the gateway adds to a model call, beside the same call without it, in the same run."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from infra.config import GatewaySettings, Settings
from infra.http import bound_socket
from tests.benchmarks.machine import milliseconds
from tests.infra.conftest import model_route, publish

CALLS = 3000
CONCURRENCIES = (1, 32)
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi " * 200}]}


def measured(folder: Path) -> dict[str, Any]:
    """Return latencies and requests a second at each concurrency, directly and through the gateway."""
    settings = Settings(data_dir=folder, gateway=GatewaySettings(port=0))
    with ExitStack() as stack:
        upstream = stack.enter_context(_process("-m", "tests.benchmarks.upstream"))
        publish(settings.log_path, model_route("tiny", upstream))
        gateway = stack.enter_context(
            _process("-m", "infra.processes.entry", "gateway", environment={"EVERLOOP_DATA_DIR": str(folder)})
        )
        results = {}
        for concurrency in CONCURRENCIES:
            direct = asyncio.run(_load(upstream, concurrency))
            through = asyncio.run(_load(gateway, concurrency))
            results[f"concurrency_{concurrency}"] = {
                "direct": direct,
                "gateway": through,
                "added_p50_ms": round(through["p50_ms"] - direct["p50_ms"], 3),
                "added_p99_ms": round(through["p99_ms"] - direct["p99_ms"], 3),
            }
        return results


async def _load(url: str, concurrency: int) -> dict[str, float]:
    durations: list[float] = []
    limits = httpx.Limits(max_connections=concurrency)

    async def work(http: httpx.AsyncClient, calls: int) -> None:
        for _ in range(calls):
            begun = time.perf_counter()
            answer = await http.post("/v1/chat/completions", json=BODY)
            durations.append(time.perf_counter() - begun)
            answer.raise_for_status()

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as http:
        await work(http, 50)
        durations.clear()
        begun = time.perf_counter()
        await asyncio.gather(*(work(http, CALLS // concurrency) for _ in range(concurrency)))
        took = time.perf_counter() - begun
    return milliseconds(durations) | {"requests_per_s": round(len(durations) / took, 1)}


@contextmanager
def _process(*arguments: str, environment: dict[str, str] | None = None) -> Iterator[str]:
    """Run a server in a process of its own on a free port and yield its URL once it answers."""
    listener = bound_socket("127.0.0.1", 0, "port")
    command = [sys.executable, *arguments, "--fd", str(listener.fileno())]
    process = subprocess.Popen(command, pass_fds=[listener.fileno()], env=os.environ | (environment or {}))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        httpx.get(f"{url}/healthz", timeout=30)  # waits in the socket's queue until the server is there
        yield url
    finally:
        process.terminate()
        process.wait()
        listener.close()
