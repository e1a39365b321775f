"""The society as a LangGraph: three juniors in parallel, a supervisor, two seniors, two reviewers,
an investigator.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import orjson
from everloop_client.langchain import call_headers
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode

from research_society.answers import usable_answer
from research_society.edges import (
    after_reviews,
    after_role,
    back_to_sender,
    demands,
)
from research_society.limits import MAX_TOOL_ROUNDS, MAX_TURNS
from research_society.outputs import (
    FinalDecision,
    JuniorResearch,
    Output,
    Refinement,
    ReviewDecision,
    Selection,
)
from research_society.outputs import Protocol as ProtocolOutput
from research_society.roles import (
    HYPOTHESIS_REFINER,
    JUNIORS,
    PEER_REVIEWER,
    PRINCIPAL_INVESTIGATOR,
    PROTOCOL_DESIGNER,
    ROLES,
    SAFETY_OFFICER,
    SUPERVISOR,
    Role,
)
from research_society.state import ReactState, SocietyState
from schemas.decisions import Candidate

O = TypeVar("O", bound=Output)  # noqa: E741
Update = dict[str, Any]


class Decide(Protocol):
    """Asks a policy which candidate to take."""

    async def __call__(self, rollout_id: str, context: str, candidates: Sequence[Candidate]) -> int:
        """Return the index of the chosen candidate."""
        ...


class Society:
    """The nodes of the graph, over one set of models, tools and a policy.

    Args:
        models: a chat model by role name.
        decide: the policy behind the supervisor.
    """

    def __init__(
        self, models: Mapping[str, BaseChatModel], tools: Sequence[BaseTool], decide: Decide
    ) -> None:
        self._models = models
        self._decide = decide
        self._react = {
            role.name: self._react_graph(role, tools) for role in ROLES.values() if role.has_tools
        }

    def graph(self) -> CompiledStateGraph[Any, Any, Any, Any]:
        """Return the compiled graph. Invoke it with `research_goal` and the config of
        `research_society.runner`.
        """
        graph = StateGraph(SocietyState)
        for junior in JUNIORS:
            graph.add_node(junior.name, self._junior(junior))
            graph.add_edge(START, junior.name)
        graph.add_node(SUPERVISOR.name, self._supervise)
        graph.add_node(HYPOTHESIS_REFINER.name, self._refine)
        graph.add_node(PROTOCOL_DESIGNER.name, self._design)
        graph.add_node(PEER_REVIEWER.name, self._reviewer(PEER_REVIEWER, "peer_review"))
        graph.add_node(SAFETY_OFFICER.name, self._reviewer(SAFETY_OFFICER, "safety_review"))
        graph.add_node("review_board", _note_demands)
        graph.add_node(PRINCIPAL_INVESTIGATOR.name, self._conclude)
        graph.add_edge([junior.name for junior in JUNIORS], SUPERVISOR.name)
        graph.add_edge(SUPERVISOR.name, HYPOTHESIS_REFINER.name)
        graph.add_edge(HYPOTHESIS_REFINER.name, PROTOCOL_DESIGNER.name)
        graph.add_edge(PROTOCOL_DESIGNER.name, PEER_REVIEWER.name)
        graph.add_edge(PEER_REVIEWER.name, SAFETY_OFFICER.name)
        graph.add_edge(SAFETY_OFFICER.name, "review_board")
        targets = [HYPOTHESIS_REFINER.name, PROTOCOL_DESIGNER.name, PRINCIPAL_INVESTIGATOR.name]
        graph.add_conditional_edges("review_board", after_reviews, targets)
        graph.add_edge(PRINCIPAL_INVESTIGATOR.name, END)
        return graph.compile(name="research_society")

    def _react_graph(
        self, role: Role, tools: Sequence[BaseTool]
    ) -> CompiledStateGraph[Any, Any, Any, Any]:
        """Return one role's loop of thinking and acting (ReAct, Yao et al., ICLR 2023); tools
        return to the sender.
        """
        model = self._models[role.name].bind_tools(tools)

        async def think(state: ReactState, config: RunnableConfig) -> Update:
            reply = await model.ainvoke(
                state["messages"], config, extra_headers=call_headers(config, role.name)
            )
            return {"messages": [reply], "sender": role.name, "rounds": 1}

        graph = StateGraph(ReactState)
        graph.add_node(role.name, think)
        graph.add_node("tools", ToolNode(tools))
        graph.add_edge(START, role.name)
        graph.add_conditional_edges(role.name, after_role, ["tools", END])
        graph.add_conditional_edges("tools", back_to_sender, [role.name])
        return graph.compile(name=f"{role.name} with tools")

    async def _ask(
        self, role: Role, output: type[O], given: Update, config: RunnableConfig
    ) -> tuple[O, int]:
        """Return a role's answer to its input, and how many turns it took."""
        messages: list[AnyMessage] = [
            SystemMessage(role.system_prompt),
            HumanMessage("Input:\n" + orjson.dumps(given).decode()),
        ]
        model = self._models[role.name].bind(extra_headers=call_headers(config, role.name))
        if role.has_tools:
            begun = {"messages": messages, "sender": role.name, "rounds": 0}
            # Two steps for each round, one to think and one to act, and a final answer.
            limited: RunnableConfig = {**config, "recursion_limit": 2 * MAX_TOOL_ROUNDS + 2}
            messages = (await self._react[role.name].ainvoke(begun, limited))["messages"]
        else:
            messages = [*messages, await model.ainvoke(messages, config)]
        answer, again = await usable_answer(model, messages, output, config)
        return answer, 1 + again

    def _junior(self, role: Role) -> Any:
        async def propose(state: SocietyState, config: RunnableConfig) -> Update:
            answer, turns = await self._ask(
                role, JuniorResearch, {"research_goal": state["research_goal"]}, config
            )
            # Not the name that the model wrote: credit goes by it.
            proposal = answer.model_copy(update={"agent_name": role.name})
            return {"initial_hypotheses": [proposal], "turn_count": turns}

        return propose

    async def _supervise(self, state: SocietyState, config: RunnableConfig) -> Update:
        """Let the policy choose, and the supervisor's model say why."""
        order = {role.name: index for index, role in enumerate(JUNIORS)}
        # Juniors run in parallel and finish in any order. The candidates must not depend on it.
        proposals = sorted(
            state["initial_hypotheses"], key=lambda proposal: order[proposal.agent_name]
        )
        candidates = [
            Candidate(id=proposal.agent_name, text=proposal.hypothesis) for proposal in proposals
        ]
        # The policy chooses, and not the model: only then is the propensity known.
        chosen = await self._decide(
            config["configurable"]["rollout_id"], state["research_goal"], candidates
        )
        given = {
            "research_goal": state["research_goal"],
            "hypotheses": [proposal.model_dump() for proposal in proposals],
            "chosen_index": chosen,
        }
        answer, turns = await self._ask(SUPERVISOR, Selection, given, config)
        return {
            "selected_index": chosen,
            "selected_hypothesis": proposals[chosen].hypothesis,
            "supporting_papers": proposals[chosen].supporting_papers,
            "supervisor_justification": answer.justification,
            "turn_count": turns,
        }

    async def _refine(self, state: SocietyState, config: RunnableConfig) -> Update:
        given = {
            "research_goal": state["research_goal"],
            "selected_hypothesis": state["selected_hypothesis"],
            "notices": state.get("notices", []),
        }
        answer, turns = await self._ask(HYPOTHESIS_REFINER, Refinement, given, config)
        return {"refined_hypothesis": answer.refined_hypothesis, "turn_count": turns}

    async def _design(self, state: SocietyState, config: RunnableConfig) -> Update:
        given = {
            "research_goal": state["research_goal"],
            "refined_hypothesis": state["refined_hypothesis"],
            "notices": state.get("notices", []),
        }
        answer, turns = await self._ask(PROTOCOL_DESIGNER, ProtocolOutput, given, config)
        return {"experimental_protocol": answer, "turn_count": turns}

    def _reviewer(self, role: Role, field: str) -> Any:
        async def review(state: SocietyState, config: RunnableConfig) -> Update:
            given = {
                "refined_hypothesis": state["refined_hypothesis"],
                "protocol": state["experimental_protocol"].model_dump(),
            }
            answer, turns = await self._ask(role, ReviewDecision, given, config)
            return {field: answer, "turn_count": turns}

        return review

    async def _conclude(self, state: SocietyState, config: RunnableConfig) -> Update:
        given = {
            "research_goal": state["research_goal"],
            "refined_hypothesis": state["refined_hypothesis"],
            "protocol": state["experimental_protocol"].model_dump(),
            "reviews": [state["peer_review"].model_dump(), state["safety_review"].model_dump()],
        }
        answer, turns = await self._ask(PRINCIPAL_INVESTIGATOR, FinalDecision, given, config)
        return {
            "final_protocol": answer.final_protocol,
            "final_decision": answer.final_decision,
            "final_rationale": answer.final_rationale,
            "turn_count": turns,
        }


def _note_demands(state: SocietyState) -> Update:
    """Write down what the reviewers ask for. The router after this node only reads."""
    if state["turn_count"] >= MAX_TURNS:
        return {
            "messages": [
                HumanMessage(
                    f"The limit of {MAX_TURNS} turns is reached; the investigator decides."
                )
            ]
        }
    asked = [f"{review.critique_severity}: {review.feedback}" for review in demands(state)]
    return {"notices": asked, "messages": [HumanMessage(text) for text in asked]}
