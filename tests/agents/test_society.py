"""The society's routing, tools and answers, with models that are scripted by their messages."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from research_society.answers import UnusableAnswerError
from research_society.edges import after_reviews
from research_society.graph import Society
from research_society.limits import MAX_TOOL_ROUNDS, MAX_TURNS
from research_society.outputs import ReviewDecision
from research_society.roles import ROLES
from research_society.simulator.app import reply
from research_society.state import SocietyState
from research_society.tasks import load_tasks
from research_society.tools import LocalIndex, build_tools

from schemas.decisions import Candidate

Script = Callable[[list[dict[str, Any]], list[dict[str, Any]]], dict[str, Any]]
GOAL = "Does a daily walk shorten hospital stay after hip surgery?"


class ScriptedModel(BaseChatModel):
    """A chat model that answers what a function of the messages says; it notes what it was
    asked.
    """

    script: Any
    tools: list[dict[str, Any]] = []
    journal: list[list[dict[str, Any]]] = []

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> "ScriptedModel":
        offered = [{"type": "function", "function": {"name": tool.name}} for tool in tools]
        return self.model_copy(update={"tools": offered, "journal": self.journal})

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **_: Any,
    ) -> ChatResult:
        names = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}
        plain = [{"role": names[message.type], "content": message.content} for message in messages]
        self.journal.append(plain)
        answer = self.script(plain, self.tools)
        calls = [
            {
                "name": c["function"]["name"],
                "args": orjson.loads(c["function"]["arguments"]),
                "id": c["id"],
            }
            for c in answer.get("tool_calls", [])
        ]
        message = AIMessage(content=answer["content"] or "", tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=message)])


async def run(script: Script, chosen: int = 0) -> tuple[dict[str, Any], ScriptedModel, list[Any]]:
    """Run the society with one scripted model for all roles."""
    model = ScriptedModel(script=script, journal=[])
    asked: list[Any] = []

    async def decide(rollout_id: str, context: str, candidates: Sequence[Candidate]) -> int:
        asked.append((rollout_id, context, candidates))
        return chosen

    society = Society(dict.fromkeys(ROLES, model), build_tools(load_tasks(None)), decide)
    config: Any = {"configurable": {"rollout_id": "r"}, "recursion_limit": 60}
    state = await society.graph().ainvoke({"research_goal": GOAL}, config)
    return state, model, asked


def about(messages: list[dict[str, Any]], title: str) -> bool:
    return f"You are the {title} " in messages[0]["content"]


async def test_a_full_pass_sets_every_field_and_asks_the_policy_once() -> None:
    state, model, asked = await run(reply, chosen=1)
    assert state["turn_count"] in (9, 12)
    ((rollout_id, context, candidates),) = asked
    assert (rollout_id, context) == ("r", GOAL)
    assert [candidate.id for candidate in candidates] == [
        "geneticist",
        "pharmacologist",
        "neurologist",
    ]
    assert state["selected_hypothesis"] == candidates[1].text
    assert {hypothesis.agent_name for hypothesis in state["initial_hypotheses"]} == {
        c.id for c in candidates
    }
    assert state["final_decision"] in ("GO", "NO-GO")
    assert state["final_protocol"].steps
    assert state["supporting_papers"] == ["everloop-01"]
    supervised = [messages for messages in model.journal if about(messages, "Supervisor")]
    assert len(supervised) == 1


async def test_tool_results_go_back_to_the_role_that_asked() -> None:
    _, model, _ = await run(reply)
    for title in ("Geneticist", "Pharmacologist", "Neurologist"):
        first, second = [messages for messages in model.journal if about(messages, title)]
        assert [message["role"] for message in first] == ["system", "user"]
        assert [message["role"] for message in second] == ["system", "user", "assistant", "tool"]
        assert "walking ward" in second[-1]["content"]


async def test_a_role_that_never_stops_calling_tools_is_stopped() -> None:
    def obsessed(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
        if about(messages, "Geneticist") and tools:
            call = {
                "id": f"c{len(messages)}",
                "function": {"name": "protein_lookup", "arguments": '{"name":"tau"}'},
            }
            return {"content": None, "tool_calls": [call]}
        return reply(messages, tools)

    state, model, _ = await run(obsessed)
    rounds = [messages for messages in model.journal if about(messages, "Geneticist")]
    assert len(rounds) == MAX_TOOL_ROUNDS + 1, (
        "its loop, and once more for the answer it still owes"
    )
    assert state["final_decision"]


async def test_an_unusable_answer_is_asked_for_again_once() -> None:
    def sloppy(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
        if about(messages, "Supervisor") and len(messages) == 2:
            return {"content": '{"selected_index": "the first"}'}
        return reply(messages, tools)

    state, model, _ = await run(sloppy)
    first, second = [messages for messages in model.journal if about(messages, "Supervisor")]
    assert "cannot be used" in second[-1]["content"]
    assert state["turn_count"] in (10, 13)
    assert first == second[:2]


async def test_a_role_that_answers_nonsense_twice_fails_the_rollout() -> None:
    def nonsense(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
        return {"content": "no"} if about(messages, "Safety Officer") else reply(messages, tools)

    with pytest.raises(UnusableAnswerError, match="ReviewDecision"):
        await run(nonsense)


def reviewer_saying(title: str, severity: str, decision: str = "REVISE") -> Script:
    def script(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
        if about(messages, title):
            review = {
                "decision": decision,
                "critique_severity": severity,
                "feedback": "more controls",
            }
            return {"content": orjson.dumps(review).decode()}
        return reply(messages, tools)

    return script


@pytest.mark.parametrize(
    ("severity", "again"), [("CRITICAL", "Hypothesis Refiner"), ("MAJOR", "Protocol Designer")]
)
async def test_a_reviewer_who_is_never_content_meets_the_turn_limit(
    severity: str, again: str
) -> None:
    state, model, _ = await run(reviewer_saying("Safety Officer", severity))
    returned = [messages for messages in model.journal if about(messages, again)]
    assert len(returned) > 1
    assert "more controls" in returned[1][1]["content"]
    assert MAX_TURNS <= state["turn_count"] <= MAX_TURNS + 4
    assert "limit" in state["messages"][-1].content


async def test_severity_without_a_demand_sends_nothing_back() -> None:
    state, _, _ = await run(reviewer_saying("Safety Officer", "CRITICAL", "APPROVE"))
    assert state["turn_count"] in (9, 12)


REVIEWS = list(itertools.product(["APPROVE", "REVISE"], ["CRITICAL", "MAJOR", "MINOR"]))


@pytest.mark.parametrize(("peer", "safety"), list(itertools.product(REVIEWS, REVIEWS)))
def test_the_worst_demand_decides_where_work_returns(
    peer: tuple[str, str], safety: tuple[str, str]
) -> None:
    def state(turns: int) -> SocietyState:
        reviews = [
            ReviewDecision.model_validate(
                {"decision": decision, "critique_severity": severity, "feedback": ""}
            )
            for decision, severity in (peer, safety)
        ]
        return {"peer_review": reviews[0], "safety_review": reviews[1], "turn_count": turns}

    demanded = {severity for decision, severity in (peer, safety) if decision == "REVISE"}
    expected = "principal_investigator"
    if "CRITICAL" in demanded:
        expected = "hypothesis_refiner"
    elif "MAJOR" in demanded:
        expected = "protocol_designer"
    assert after_reviews(state(9)) == expected
    assert after_reviews(state(MAX_TURNS)) == "principal_investigator"


async def test_the_local_index_finds_the_paper_a_question_is_about() -> None:
    tasks = load_tasks(None)
    index = LocalIndex(tasks)
    for task in tasks:
        assert (await index(task.goal))[0]["id"] == task.id
    assert await LocalIndex(tasks, must_mention=("no such word",))("anything") == []


async def test_lookups_hit_miss_and_do_not_mind_case() -> None:
    tools = {tool.name: tool for tool in build_tools(load_tasks(None))}
    assert len(tools) == 4
    assert "lipid transport" in await tools["gene_ontology_lookup"].ainvoke({"gene": "APOE4"})
    assert "microtubules" in await tools["protein_lookup"].ainvoke({"name": " Tau "})
    assert "No protein 'insulin'" in await tools["protein_lookup"].ainvoke({"name": "insulin"})
    found = orjson.loads(
        await tools["clinical_trials_search"].ainvoke({"query": "leg ulcers randomised"})
    )
    assert found[0]["id"] == "everloop-08"
    assert set(tools["protein_lookup"].args) == {"name"}


def test_the_label_is_in_no_prompt() -> None:
    assert all("expected" not in role.system_prompt for role in ROLES.values())
