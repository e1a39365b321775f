"""The path of production: decisions and rewards by HTTP, at `everloop up` with its defaults."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from learners.policies import UNIFORM_VERSION
from tests.benchmarks.production.problems import Turn
from tests.e2e.installation import COMMAND, environment, everloop_json
from tests.waiting import eventually

PER_S = 1.5
"""Rounds a second of each policy: 5,400 rollouts an hour."""


@dataclass
class Played:
    """What came of the rounds of a policy.

    Attributes:
        rewards: of each round, also where nobody is told.
        versions: that decided, round by round.
        late_s: by how much rounds began too late, at most; the machine was too busy then.
    """

    rewards: list[float] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    late_s: float = 0.0

    @property
    def first_learned(self) -> int | None:
        """The round in which a learned version decided first."""
        learned = (n for n, version in enumerate(self.versions) if version != UNIFORM_VERSION)
        return next(learned, None)

    @property
    def share_uniform(self) -> float:
        """Share of the rounds that the uniform baseline decided."""
        return self.versions.count(UNIFORM_VERSION) / len(self.versions)


def played(folder: Path, games: Mapping[str, Sequence[Turn]]) -> dict[str, Played]:
    """Play all games side by side at one installation; each is a policy of its own.

    Args:
        games: by the name of the policy.
    """
    with _installation(folder, list(games)) as url:
        return uvloop.run(_all(url, games))


@contextmanager
def _installation(folder: Path, policies: Sequence[str]) -> Iterator[str]:
    """Yield the address of an installation in which only the policies' names are configured."""
    config = folder / "everloop.toml"
    config.write_text(f"[bandit]\ntargets = {list(policies)}\n")
    data = folder / ".everloop"
    os.environ["EVERLOOP_CONFIG"] = str(config)
    process = subprocess.Popen(
        [COMMAND, "up"],
        env=environment(data),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def address() -> str | None:
        assert process.poll() is None, process.communicate()[1]
        status = everloop_json(data, "status")
        return str(status["urls"]["gateway"]) if status["running"] else None

    try:
        yield eventually(address, "the gateway")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        del os.environ["EVERLOOP_CONFIG"]


async def _all(url: str, games: Mapping[str, Sequence[Turn]]) -> dict[str, Played]:
    connector = aiohttp.TCPConnector(limit=64)
    async with aiohttp.ClientSession(f"{url}/everloop/v1/", connector=connector) as session:
        begun = time.monotonic() + 1.0
        found = await asyncio.gather(
            *(
                _game(session, policy, turns, begun + place / len(games) / PER_S)
                for place, (policy, turns) in enumerate(games.items())
            )
        )
    return dict(zip(games, found, strict=True))


async def _game(
    session: aiohttp.ClientSession, policy: str, turns: Sequence[Turn], begun: float
) -> Played:
    """Play the rounds of a policy, at its pace. A reward is sent just before the round in which it
    is due.
    """
    done, due = Played(), dict[int, list[tuple[str, float]]]()
    for number, turn in enumerate(turns):
        wait = begun + number / PER_S - time.monotonic()
        await asyncio.sleep(max(0.0, wait))
        done.late_s = max(done.late_s, -wait)
        for rollout, value in due.pop(number, []):
            await _sent(session, "rewards", {"rollout_id": rollout, "value": value})
        rollout = f"{policy}-{number}"
        candidates = [one.model_dump(exclude_defaults=True) for one in turn.candidates]
        asked = {"rollout_id": rollout, "policy": policy, "context": turn.context}
        answer = await _sent(session, "decisions", asked | {"candidates": candidates})
        await _sent(session, f"rollouts/{rollout}/end", {"state": "succeeded"})
        reward = turn.rewards[answer["choice"]]
        done.rewards.append(reward)
        done.versions.append(answer["policy_version"])
        if turn.delay is not None:
            due.setdefault(number + turn.delay, []).append((rollout, reward))
    return done


async def _sent(session: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> Any:
    async with session.post(path, json=body) as answer:
        content = await answer.json()
        assert answer.ok, content
        return content
