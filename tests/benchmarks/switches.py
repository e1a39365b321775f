"""How long a switch takes, from its announcement to the first rollout that is served by it, while
traffic flows.
"""

import asyncio
import time
from collections import defaultdict
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import uvloop

from schemas.routes import Route, RouteEvent
from schemas.topics import ROUTES
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.records import Outgoing
from tests.benchmarks.gateway import process
from tests.benchmarks.machine import milliseconds
from tests.infra.conftest import model_route, publish

SWITCHES = 1000
CALLERS = 8
CALLS_OF_A_ROLLOUT = 4
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


class Traffic:
    """Rollouts of a few calls each, one after another by each caller.

    Attributes:
        seen: by rollout, the versions that answered it.
        first_seen: by version, when it first answered.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: dict[str, set[str]] = defaultdict(set)
        self.first_seen: dict[str, float] = {}
        self.calls = self.failed = 0
        self.stop = False
        self._numbers = count()

    async def run(self) -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(self._caller(session) for _ in range(CALLERS)))

    async def _caller(self, session: aiohttp.ClientSession) -> None:
        while not self.stop:
            rollout = f"r{next(self._numbers)}"
            for _ in range(CALLS_OF_A_ROLLOUT):
                headers = {"x-everloop-rollout-id": rollout}
                async with session.post(
                    f"{self.url}/v1/chat/completions", json=BODY, headers=headers
                ) as answer:
                    await answer.read()
                    version = answer.headers.get("x-everloop-checkpoint", "none")
                self.calls += 1
                self.failed += answer.status != 200
                self.seen[rollout].add(version)
                self.first_seen.setdefault(version, time.perf_counter())
            end = f"{self.url}/everloop/v1/rollouts/{rollout}/end"
            async with session.post(end, json={"state": "succeeded"}) as answer:
                self.failed += answer.status != 202


def measured(folder: Path) -> dict[str, Any]:
    """Return the time from announcement to first request, and what went wrong meanwhile, which must
    be nothing.
    """
    with process("-m", "tests.benchmarks.stub") as stub:
        upstream = f"http://127.0.0.1:{stub.port}"
        publish(folder / "log.db", model_route("tiny", upstream, "v0"))
        environment = {"EVERLOOP_DATA_DIR": str(folder)}
        with process("-m", "infra.processes.entry", "gateway", environment=environment) as gateway:
            url = f"http://127.0.0.1:{gateway.port}"
            httpx.get(f"{url}/healthz", timeout=30)
            return uvloop.run(_switched(url, folder / "log.db", upstream))


async def _switched(url: str, log_path: Path, upstream: str) -> dict[str, Any]:
    traffic = Traffic(url)
    running = asyncio.create_task(traffic.run())
    durations: list[float] = []
    with EmbeddedLog(log_path) as log:
        for number in range(1, SWITCHES + 1):
            version = f"v{number}"
            announced = _announced(log, model_route("tiny", upstream, version))
            while version not in traffic.first_seen:
                await asyncio.sleep(0.001)
            durations.append(traffic.first_seen[version] - announced)
    traffic.stop = True
    await running
    return {
        "switches": SWITCHES,
        "announced_to_first_request": milliseconds(durations),
        "calls": traffic.calls,
        "failed": traffic.failed,
        "rollouts": len(traffic.seen),
        "rollouts_with_two_versions": sum(len(versions) != 1 for versions in traffic.seen.values()),
    }


def _announced(log: EmbeddedLog, route: Route) -> float:
    log.append([Outgoing.of(ROUTES, route.name, RouteEvent(payload=route)).record()])
    return time.perf_counter()
