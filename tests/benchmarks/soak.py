"""Half an hour of everything at once: `python -m tests.benchmarks.soak [--seconds N] [--out
FOLDER]`.

Callers with and without rollouts, streams, callers who hang up, rewards, decisions, routes that
switch, and one request in ten is malformed. Prints what was done and what went wrong, and draws the
gateway's memory over time.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import matplotlib as mpl
import orjson
import psutil
import uvloop

mpl.use("agg")
from matplotlib import pyplot as plt

from schemas.rewards import RewardEvent
from schemas.serialization import decode_all
from schemas.topics import REWARDS
from streams.processors.promotion_state import baseline_route
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from tests.benchmarks.gateway import process
from tests.benchmarks.machine import machine
from tests.infra.conftest import model_route, publish
from tests.infra.gateway.mutations import mutated, sent, valid_requests

CALLERS = 8
PAUSE_S = 0.05
SAMPLE_S = 5.0
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi " * 50}]}


class Soak:
    """The callers, and what came of their requests."""

    def __init__(self, port: int, seconds: float) -> None:
        self.outcomes: Counter[str] = Counter()
        self.acknowledged: set[str] = set()
        self._port = port
        self._url = f"http://127.0.0.1:{port}"
        self._until = time.monotonic() + seconds

    async def run(self) -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(self._caller(session, number) for number in range(CALLERS)))

    async def _caller(self, session: aiohttp.ClientSession, number: int) -> None:
        chance = random.Random(number)
        sources = valid_requests()
        while time.monotonic() < self._until:
            await asyncio.sleep(chance.uniform(0, 2 * PAUSE_S))
            match chance.randrange(10):
                case 0:
                    answer = await sent(self._port, mutated(chance.choice(sources), chance))
                    status = answer.split(b" ", 2)[1].decode() if answer else "closed"
                    self.outcomes[f"hostile {status}"] += 1
                case 1:
                    await self._reward(session, f"r{number}-{chance.randrange(10**9)}")
                case 2:
                    body = {
                        "rollout_id": f"d{number}",
                        "policy": "supervisor-policy",
                        "candidates": [{"text": "a"}],
                    }
                    await self._post(session, "decision", "/everloop/v1/decisions", body)
                case 3 | 4:
                    await self._post(
                        session, "stream", "/v1/chat/completions", CHAT | {"stream": True}
                    )
                case 5:
                    await self._hang_up(session)
                case 6 | 7:
                    headers = {"x-everloop-rollout-id": f"n{number}-{chance.randrange(10**9)}"}
                    await self._post(session, "named", "/v1/chat/completions", CHAT, headers)
                    end = f"/everloop/v1/rollouts/{headers['x-everloop-rollout-id']}/end"
                    await self._post(session, "end", end, {"state": "succeeded"})
                case _:
                    await self._post(session, "chat", "/v1/chat/completions", CHAT)

    async def _post(
        self,
        session: aiohttp.ClientSession,
        kind: str,
        path: str,
        body: Any,
        headers: dict[str, str] | None = None,
    ) -> None:
        async with session.post(self._url + path, json=body, headers=headers) as answer:
            await answer.read()
            self.outcomes[f"{kind} {answer.status}"] += 1

    async def _reward(self, session: aiohttp.ClientSession, rollout: str) -> None:
        async with session.post(
            f"{self._url}/everloop/v1/rewards", json={"rollout_id": rollout, "value": 1}
        ) as answer:
            found = await answer.json()
            self.outcomes[f"reward {answer.status}"] += 1
            self.acknowledged.add(found["event_id"])

    async def _hang_up(self, session: aiohttp.ClientSession) -> None:
        async with session.post(
            f"{self._url}/v1/chat/completions", json=CHAT | {"stream": True}
        ) as answer:
            await answer.content.readany()
            self.outcomes["hung up"] += 1


async def _sampled(
    server: psutil.Process, seconds: float, curve: list[tuple[float, float]]
) -> None:
    begun = time.monotonic()
    while (elapsed := time.monotonic() - begun) < seconds:
        curve.append((round(elapsed, 1), round(server.memory_info().rss / 2**20, 1)))
        await asyncio.sleep(SAMPLE_S)


async def _switching(log_path: Path, upstream: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    number = 0
    while time.monotonic() < until:
        number += 1
        publish(log_path, model_route("tiny", upstream, f"v{number}"))
        await asyncio.sleep(10)


def main() -> None:
    """Run, print what came of it, and draw the memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument(
        "--out", type=Path, default=Path("soak"), help="folder for the results and the picture"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    curve: list[tuple[float, float]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        process("-m", "tests.benchmarks.stub", "--delay", "0.02") as stub,
    ):
        log_path, upstream = Path(folder) / "log.db", f"http://127.0.0.1:{stub.port}"
        publish(log_path, model_route("tiny", upstream, "v0"), baseline_route("supervisor-policy"))
        environment = {"EVERLOOP_DATA_DIR": folder, "EVERLOOP_GATEWAY__CONVERSATION_IDLE_S": "60"}
        with process("-m", "infra.processes.entry", "gateway", environment=environment) as gateway:
            httpx.get(f"http://127.0.0.1:{gateway.port}/healthz", timeout=30)
            soak = Soak(gateway.port, options.seconds)

            async def everything() -> None:
                await asyncio.gather(
                    soak.run(),
                    _sampled(gateway.process, options.seconds, curve),
                    _switching(log_path, upstream, options.seconds),
                )

            uvloop.run(everything())
            health = httpx.get(f"http://127.0.0.1:{gateway.port}/healthz", timeout=30).json()
        with EmbeddedLog(log_path) as log:
            found = {
                e.event_id
                for r in read_all(log, REWARDS.name)
                for e in decode_all(RewardEvent, r.value)
            }
    settled = [rss for elapsed, rss in curve if elapsed > options.seconds / 3]
    document = {
        "machine": machine(),
        "seconds": options.seconds,
        "outcomes": dict(sorted(soak.outcomes.items())),
        "acknowledged_rewards": len(soak.acknowledged),
        "lost_rewards": len(soak.acknowledged - found),
        "health": health["status"],
        "memory_mib": {
            "begin": curve[0][1],
            "a_third_in": settled[0],
            "end": settled[-1],
            "most": max(settled),
        },
        "curve": curve,
    }
    (options.out / "soak.json").write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    figure, axes = plt.subplots(figsize=(8, 3))
    axes.plot([elapsed / 60 for elapsed, _ in curve], [rss for _, rss in curve])
    axes.set(xlabel="minutes", ylabel="resident memory, MiB", ylim=(0, None))
    figure.savefig(options.out / "soak.png", dpi=120, bbox_inches="tight")
    sys.stdout.write(
        orjson.dumps(document | {"curve": len(curve)}, option=orjson.OPT_INDENT_2).decode() + "\n"
    )


if __name__ == "__main__":
    main()
