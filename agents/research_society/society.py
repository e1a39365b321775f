"""The society with its models, its policy, its search index and its tracer."""

from collections.abc import Mapping, Sequence
from typing import Any

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

STEPS = 60
"""Most steps of the graph. A whole discussion with every repetition takes some forty."""


class ResearchSociety:
    """Solves research tasks through a gateway.

    Args:
        roles: role to logical model name.
        tasks: what the local search index is made of.
    """

    def __init__(
        self, gateway_url: str, roles: Mapping[str, str], tasks: Sequence[ResearchTask]
    ) -> None:
        self._client = AsyncClient(gateway_url)
        self._provider: TracerProvider = tracer_provider(gateway_url, service=AGENT)
        self._tools = build_tools(tasks)
        self._models = {
            name: ChatOpenAI(
                model=roles[name],
                base_url=f"{gateway_url.rstrip('/')}/v1",
                # OpenAI's client needs some key. A gateway on loopback asks for none.
                api_key=SecretStr("everloop"),
                temperature=role.temperature,
                max_retries=2,
            )
            for name, role in ROLES.items()
        }
        self._graphs: dict[str, Any] = {}

    async def solve(self, goal: str, rollout_id: str, policy: str) -> tuple[dict[str, Any], int]:
        """Return the society's output as JSON, and how many turns it took.

        Args:
            policy: logical name of the policy behind the supervisor.
        """
        tracer = RolloutTracer(
            self._provider.get_tracer("everloop.agents"), rollout_id, AGENT, frozenset(ROLES)
        )
        state = await self._graph(policy).ainvoke(
            {"research_goal": goal},
            {
                "callbacks": [tracer],
                "configurable": {"rollout_id": rollout_id},
                "recursion_limit": STEPS,
            },
        )
        return _result(state), state["turn_count"]

    def flush(self) -> None:
        """Send the spans that wait."""
        self._provider.force_flush()

    async def close(self) -> None:
        """Send the last spans and close the connections."""
        self._provider.shutdown()
        await self._client.close()

    def _graph(self, policy: str) -> Any:
        """Return the society whose supervisor follows a policy."""
        if policy not in self._graphs:

            async def decide(rollout_id: str, context: str, candidates: Sequence[Candidate]) -> int:
                described = [candidate.model_dump() for candidate in candidates]
                choice = await self._client.decide(rollout_id, policy, context, described)
                return choice.index

            # Compiled once for each policy, and not for each rollout.
            self._graphs[policy] = Society(self._models, self._tools, decide).graph()
        return self._graphs[policy]


def _result(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "selected_index": state["selected_index"],
        "selected_hypothesis": state["selected_hypothesis"],
        "refined_hypothesis": state["refined_hypothesis"],
        "supporting_papers": state["supporting_papers"],
        "final_protocol": state["final_protocol"].model_dump(),
        "final_decision": state["final_decision"],
        "final_rationale": state["final_rationale"],
    }
