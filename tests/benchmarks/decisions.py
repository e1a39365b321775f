"""How long a decision takes, which is durable when it is answered."""

import asyncio
import time
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import httpx
import orjson
import uvloop

from learners.bandit import MEDIA_TYPE, BanditPolicy
from learners.bandit.features import identity_of, words_of
from learners.bandit.policy import Weights
from learners.bandit.slates import BITS
from learners.bandit.vocabulary import Vocabulary
from schemas.decisions import Candidate
from schemas.routes import Route, RouteTarget
from streams.processors.promotion_state import baseline_route
from streams.storage.artifacts import ArtifactStore
from tests.benchmarks.gateway import process
from tests.benchmarks.machine import milliseconds
from tests.infra.conftest import publish

CALLS = 3000
LARGE_CALLS = 100
WARM_CALLS = 10
"""The first large decisions start a process and load the policy there."""

FEW = [{"id": str(number), "text": f"candidate {number} " * 10} for number in range(10)]
HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]


def measured(folder: Path) -> dict[str, Any]:
    """Return latencies with one caller and with eight, ten candidates each; and of large ones with
    one caller, of a bandit that has learned. Candidates come again, contexts do not.
    """
    publish(folder / "log.db", baseline_route("supervisor-policy"), _bandit(folder))
    environment = {"EVERLOOP_DATA_DIR": str(folder)}
    with process("-m", "infra.processes.entry", "gateway", environment=environment) as gateway:
        url = f"http://127.0.0.1:{gateway.port}"
        httpx.get(f"{url}/healthz", timeout=30)
        small = {f"{callers} callers": uvloop.run(_decided(url, callers)) for callers in (1, 8)}
        large = {
            name: uvloop.run(_decided_large(url, context, candidates))
            for name, (context, candidates) in _large().items()
        }
        return small | large


def _bandit(folder: Path) -> Route:
    """Return the route of a policy with weights for all features, that knows contexts' words."""
    draw, vocabulary = Random(1), Vocabulary()
    for context, candidates in _large().values():
        first = Candidate(**candidates[0])
        for _ in range(5):
            vocabulary.take(words_of(context), identity_of(first))
    weights = Weights(0.5, {index: draw.gauss(0.0, 0.01) for index in range(1 << BITS)})
    policy = BanditPolicy(weights, "squarecb", 1000.0, 0.03, vocabulary=vocabulary)
    stored = ArtifactStore(folder / "artifacts").put(policy.to_bytes(), MEDIA_TYPE)
    targets = [RouteTarget(version="learned", artifact=stored)]
    return Route(name="learned-policy", kind="policy", targets=targets)


def _large() -> dict[str, tuple[str, list[dict[str, Any]]]]:
    draw = Random(0)
    words = ["".join(draw.choices("abcdefghij", k=7)) for _ in range(5000)]

    def latin(characters: int) -> str:
        return " ".join(draw.choices(words, k=characters // 8))

    def han(characters: int) -> str:
        return "".join(draw.choices(HAN, k=characters))

    def many(count: int, text: Any, characters: int) -> list[dict[str, Any]]:
        return [{"id": str(number), "text": text(characters)} for number in range(count)]

    return {
        "context of 10 kB, 10 candidates": (latin(10_000), many(10, latin, 200)),
        "1,000 candidates of 200 characters": (latin(200), many(1000, latin, 200)),
        "1,000 candidates of 200 characters of Han": (han(200), many(1000, han, 200)),
        "context of 10 kB of Han, 10 candidates": (han(3_400), many(10, han, 70)),
        "1,000 candidates of 10 kB": (latin(200), many(1000, latin, 10_000)),
    }


async def _decided(url: str, callers: int) -> dict[str, float]:
    durations: list[float] = []

    async def decide(caller: int) -> None:
        for number in range(CALLS // callers):
            body = {
                "rollout_id": f"r{caller}-{number}",
                "policy": "supervisor-policy",
                "candidates": FEW,
            }
            durations.append(await _ask(session, url, body))

    async with aiohttp.ClientSession() as session:
        begun = time.perf_counter()
        await asyncio.gather(*(decide(caller) for caller in range(callers)))
        took = time.perf_counter() - begun
    return milliseconds(durations) | {"decisions_per_s": round(len(durations) / took)}


async def _decided_large(
    url: str, context: str, candidates: list[dict[str, Any]]
) -> dict[str, float]:
    durations: list[float] = []
    body = {"policy": "learned-policy", "candidates": candidates}
    async with aiohttp.ClientSession() as session:
        for number in range(WARM_CALLS + LARGE_CALLS):
            asked = {"rollout_id": f"large-{number}", "context": f"{number} {context}"}
            durations.append(await _ask(session, url, body | asked))
    return milliseconds(durations[WARM_CALLS:])


async def _ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> float:
    """Ask for a decision; return how long it took, in seconds."""
    content = orjson.dumps(body)
    headers = {"content-type": "application/json"}
    begun = time.perf_counter()
    async with session.post(
        f"{url}/everloop/v1/decisions", data=content, headers=headers
    ) as answer:
        answer.raise_for_status()
        await answer.read()
    return time.perf_counter() - begun
