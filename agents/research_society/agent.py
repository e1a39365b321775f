"""The society as an agent that a pipeline runs: one task, one rollout."""

import asyncio
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from everloop_client.asynchronous import AsyncRollout

from research_society.roles import MODELS
from research_society.society import ResearchSociety
from research_society.tasks import load_tasks

POLICY = "supervisor-policy"


def tasks() -> Iterator[dict[str, Any]]:
    """Yield the tasks: `id`, `input`, `expected` and `split` of each."""
    for task in load_tasks(None):
        yield {
            "id": task.id,
            "input": {"goal": task.goal, "context": task.context},
            "expected": task.expected_decision,
            "split": task.split,
        }


async def solve(
    task: Mapping[str, Any],
    rollout: AsyncRollout,
    *,
    policy: str = POLICY,
    models: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the society's output for a task.

    Args:
        task: with `input`, which has a `goal`.
        policy: logical name of the policy behind the supervisor.
        models: role to logical model name, for roles that should call another than usual.
    """
    roles = tuple(sorted((MODELS | dict(models or {})).items()))
    society = _society(rollout.gateway_url, roles)
    output, rollout.turns = await society.solve(task["input"]["goal"], rollout.id, policy)
    # The rollout's spans must be on the log before its end is.
    await asyncio.to_thread(society.flush)
    return output


@cache
def _society(gateway_url: str, roles: tuple[tuple[str, str], ...]) -> ResearchSociety:
    return ResearchSociety(gateway_url, dict(roles), load_tasks(None))
