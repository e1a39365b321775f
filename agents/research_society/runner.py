"""The runner: the society over tasks, N rollouts at a time, each announced, traced and ended
through the gateway.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from everloop_client import AsyncClient
from everloop_client.langchain import RolloutTracer, tracer_provider
from langchain_openai import ChatOpenAI
from opentelemetry.sdk.trace import TracerProvider
from pydantic import SecretStr

from research_society.graph import Society
from research_society.rewards import AGENT
from research_society.roles import ROLES
from research_society.tasks import ResearchTask
from research_society.tools import build_tools
from schemas.decisions import Candidate
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
        roles: role to logical model name.
        tasks: what the local search index is made of.
        parallel: rollouts at a time.
    """

    def __init__(
        self,
        gateway_url: str,
        roles: Mapping[str, str],
        tasks: Sequence[ResearchTask],
        parallel: int = 4,
    ) -> None:
        self._client = AsyncClient(gateway_url)
        self._provider: TracerProvider = tracer_provider(gateway_url, service=AGENT)
        self._tools = build_tools(tasks)
        self._models = {
            name: ChatOpenAI(
                model=roles[name],
                base_url=f"{gateway_url.rstrip('/')}/v1",
                api_key=SecretStr("everloop"),
                temperature=role.temperature,
                max_retries=2,
            )
            for name, role in ROLES.items()
        }
        self._graphs: dict[str, Any] = {}
        self._parallel = parallel

    async def run(
        self, attempts: Iterable[Attempt], before_each: Callable[[Attempt], None] = lambda _: None
    ) -> AsyncIterator[Finished]:
        """Run attempts in their order, `parallel` at a time, and yield each as it ends."""
        waiting = iter(attempts)
        running: set[asyncio.Task[Finished]] = set()
        while True:
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
        """Flush the last spans and close the connections."""
        await asyncio.to_thread(self._provider.shutdown)
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
        tracer = RolloutTracer(
            self._provider.get_tracer("everloop.agents"),
            attempt.rollout_id,
            AGENT,
            frozenset(ROLES),
        )
        error: str | None = None
        try:
            state = await self._graph(attempt.policy).ainvoke(
                {"research_goal": task.goal},
                {
                    "callbacks": [tracer],
                    "configurable": {"rollout_id": attempt.rollout_id},
                    "recursion_limit": 60,
                },
            )
            rollout.output, rollout.turns = _result(state), state["turn_count"]
        # the rollout has failed, whatever the reason; the others go on
        except Exception as failure:  # noqa: BLE001
            error = f"{type(failure).__name__}: {failure}"
            logger.warning("rollout failed", rollout_id=attempt.rollout_id, error=error)
        # The rollout's spans must be on the log before its end is.
        await asyncio.to_thread(self._provider.force_flush)
        await rollout.end(error)
        return Finished(attempt, rollout.output, error, rollout.turns)

    def _graph(self, policy: str) -> Any:
        """Return the society whose supervisor follows a policy."""
        if policy not in self._graphs:

            async def decide(rollout_id: str, context: str, candidates: Sequence[Candidate]) -> int:
                described = [candidate.model_dump() for candidate in candidates]
                choice = await self._client.decide(rollout_id, policy, context, described)
                return choice.index

            self._graphs[policy] = Society(self._models, self._tools, decide).graph()
        return self._graphs[policy]


def _result(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the society produced, as JSON."""
    return {
        "selected_index": state["selected_index"],
        "selected_hypothesis": state["selected_hypothesis"],
        "refined_hypothesis": state["refined_hypothesis"],
        "supporting_papers": state["supporting_papers"],
        "final_protocol": state["final_protocol"].model_dump(),
        "final_decision": state["final_decision"],
        "final_rationale": state["final_rationale"],
    }
