"""The runner of the demonstration: the society over tasks, N rollouts at a time, each announced and
ended through the gateway.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from everloop_client import AsyncClient

from research_society.rewards import AGENT
from research_society.roles import MODELS
from research_society.society import ResearchSociety
from research_society.tasks import ResearchTask
from schemas.rollouts import Split

logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Attempt:
    """One rollout to be run.

    Attributes:
        policy: logical name of the policy behind the supervisor.
        group: experiment arm.
    """

    rollout_id: str
    task: ResearchTask
    policy: str
    split: Split
    group: str = "default"


@dataclass(frozen=True)
class Finished:
    """How a rollout ended: with a result, or with an error."""

    attempt: Attempt
    output: dict[str, Any] | None
    error: str | None
    turns: int | None


class Runner:
    """Runs the research society against a gateway.

    Args:
        tasks: what the local search index is made of.
        parallel: rollouts at a time.
    """

    def __init__(self, gateway_url: str, tasks: Sequence[ResearchTask], parallel: int = 4) -> None:
        self._client = AsyncClient(gateway_url)
        self._society = ResearchSociety(gateway_url, MODELS, tasks)
        self._parallel = parallel

    async def run(
        self, attempts: Iterable[Attempt], before_each: Callable[[Attempt], None] = lambda _: None
    ) -> AsyncIterator[Finished]:
        """Run attempts in their order, `parallel` at a time, and yield each as it ends."""
        waiting = iter(attempts)
        running: set[asyncio.Task[Finished]] = set()
        while True:
            # Goes on where it stopped: `waiting` is one iterator.
            for attempt in waiting:
                before_each(attempt)
                running.add(asyncio.create_task(self._run_one(attempt)))
                if len(running) >= self._parallel:
                    break
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for finished in done:
                yield finished.result()

    async def close(self) -> None:
        """Send the last spans and close the connections."""
        await self._society.close()
        await self._client.close()

    async def _run_one(self, attempt: Attempt) -> Finished:
        """Run one attempt; whatever goes wrong in the agent ends the rollout as failed, never the
        runner.
        """
        task = attempt.task
        rollout = self._client.rollout(
            id=attempt.rollout_id,
            task=task.id,
            input={"goal": task.goal, "context": task.context},
            expected=task.expected_decision,
            agent=AGENT,
            split=attempt.split,
            group=attempt.group,
        )
        await rollout.begin()
        error: str | None = None
        try:
            rollout.output, rollout.turns = await self._society.solve(
                task.goal, attempt.rollout_id, attempt.policy
            )
        # the rollout has failed, whatever the reason; the others go on
        except Exception as failure:  # noqa: BLE001
            error = f"{type(failure).__name__}: {failure}"
            logger.warning("rollout failed", rollout_id=attempt.rollout_id, error=error)
        # The rollout's spans must be on the log before its end is.
        await asyncio.to_thread(self._society.flush)
        await rollout.end(error)
        return Finished(attempt, rollout.output, error, rollout.turns)
