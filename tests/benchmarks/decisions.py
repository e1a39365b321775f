"""How long a decision takes, which is durable when it is answered."""

import asyncio
import time
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import uvloop

from streams.processors.promotion_state import baseline_route
from tests.benchmarks.gateway import process
from tests.benchmarks.machine import milliseconds
from tests.infra.conftest import publish

CALLS = 3000
CANDIDATES = [{"id": str(number), "text": f"candidate {number} " * 10} for number in range(10)]


def measured(folder: Path) -> dict[str, Any]:
    """Return latencies with one caller and with eight, ten candidates each."""
    publish(folder / "log.db", baseline_route("supervisor-policy"))
    environment = {"EVERLOOP_DATA_DIR": str(folder)}
    with process("-m", "infra.processes.entry", "gateway", environment=environment) as gateway:
        url = f"http://127.0.0.1:{gateway.port}"
        httpx.get(f"{url}/healthz", timeout=30)
        return {f"{callers} callers": uvloop.run(_decided(url, callers)) for callers in (1, 8)}


async def _decided(url: str, callers: int) -> dict[str, float]:
    durations: list[float] = []

    async def decide(caller: int) -> None:
        for number in range(CALLS // callers):
            body = {
                "rollout_id": f"r{caller}-{number}",
                "policy": "supervisor-policy",
                "candidates": CANDIDATES,
            }
            begun = time.perf_counter()
            async with session.post(f"{url}/everloop/v1/decisions", json=body) as answer:
                answer.raise_for_status()
                await answer.read()
            durations.append(time.perf_counter() - begun)

    async with aiohttp.ClientSession() as session:
        begun = time.perf_counter()
        await asyncio.gather(*(decide(caller) for caller in range(callers)))
        took = time.perf_counter() - begun
    return milliseconds(durations) | {"decisions_per_s": round(len(durations) / took)}
