"""Talks six turns with a customer, as a LangGraph agent with nothing but the base URL.

It names no rollout and ends none. The customer's mark goes to the rollout that the answers name.
"""

import json
import os
import sys
from typing import Any

import httpx
from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph

GATEWAY = os.environ["GATEWAY"]
TURNS = 6


def agent() -> Any:
    model = ChatOpenAI(
        base_url=f"{GATEWAY}/v1", api_key="any", model="mechanic", include_response_headers=True
    )

    def reply(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    def ask_back(state: MessagesState) -> dict[str, Any]:
        turn = len(state["messages"]) // 2 + 1
        first = state["messages"][0].content
        return {"messages": [HumanMessage(f"And after that? (turn {turn} of: {first})")]}

    def next_step(state: MessagesState) -> str:
        return END if len(state["messages"]) >= 2 * TURNS else "customer"

    graph = StateGraph(MessagesState)
    graph.add_node("agent", reply)
    graph.add_node("customer", ask_back)
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", next_step)
    graph.add_edge("customer", "agent")
    return graph.compile()


def main() -> None:
    everloop, talk = httpx.Client(base_url=f"{GATEWAY}/everloop/v1"), agent()
    for line in sys.stdin:
        ticket = json.loads(line)
        done = talk.invoke({"messages": [HumanMessage(ticket["question"])]})
        answers = [message for message in done["messages"] if isinstance(message, AIMessage)]
        (rollout,) = {a.response_metadata["headers"]["x-everloop-rollout-id"] for a in answers}
        helped = ["Certainly" in answer.text for answer in answers]
        reward = {"rollout_id": rollout, "value": sum(helped) / TURNS, "source": "human"}
        everloop.post("/rewards", json=reward).raise_for_status()
        used = [answer.response_metadata["model_name"] for answer in answers]
        print(json.dumps({"used": used, "reward": reward["value"]}), flush=True)


if __name__ == "__main__":
    main()
