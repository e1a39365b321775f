"""The society's shared state. Every field has one owner node; parallel nodes meet only in fields
with a reducer.
"""

import operator
from typing import Annotated

from langchain_core.messages import AnyMessage
from langgraph.graph.message import add_messages
from typing_extensions import TypedDict

from research_society.outputs import JuniorResearch, Protocol, ReviewDecision


class SocietyState(TypedDict, total=False):
    """What the society knows.

    Attributes:
        messages: notices of the review board.
        research_goal: the question.
        turn_count: times a role has acted; parallel roles add up.
        initial_hypotheses: the juniors' proposals, in the order of their roles once the supervisor
            has them.
        notices: what the reviewers asked for, when they sent the work back.
    """

    messages: Annotated[list[AnyMessage], add_messages]
    research_goal: str
    turn_count: Annotated[int, operator.add]
    initial_hypotheses: Annotated[list[JuniorResearch], operator.add]
    selected_index: int
    selected_hypothesis: str
    supporting_papers: list[str]
    supervisor_justification: str
    refined_hypothesis: str
    experimental_protocol: Protocol
    peer_review: ReviewDecision
    safety_review: ReviewDecision
    notices: list[str]
    final_protocol: Protocol
    final_decision: str
    final_rationale: str


class ReactState(TypedDict):
    """One role's conversation with its model and its tools.

    Attributes:
        sender: the role to which tool results go back.
        rounds: tool rounds so far.
    """

    messages: Annotated[list[AnyMessage], add_messages]
    sender: str
    rounds: Annotated[int, operator.add]
