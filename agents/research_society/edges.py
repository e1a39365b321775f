"""Where the work goes next; pure functions of the state."""

from langchain_core.messages import AIMessage
from langgraph.graph import END

from research_society.limits import MAX_TOOL_ROUNDS, MAX_TURNS
from research_society.outputs import ReviewDecision
from research_society.state import ReactState, SocietyState


def after_role(state: ReactState) -> str:
    """Return `tools` when the role's model asked for tools and may still use them, else the end."""
    last = state["messages"][-1]
    asks = isinstance(last, AIMessage) and bool(last.tool_calls)
    return "tools" if asks and state["rounds"] < MAX_TOOL_ROUNDS else END


def back_to_sender(state: ReactState) -> str:
    """Return the role that asked for the tools."""
    return state["sender"]


def after_reviews(state: SocietyState) -> str:
    """Return who works next after both reviews.

    At the turn limit the investigator decides. Otherwise a review that says REVISE sends the work
    back: a CRITICAL one to the refiner, else a MAJOR one to the designer. A severity without REVISE
    sends nothing back.
    """
    if state["turn_count"] >= MAX_TURNS:
        return "principal_investigator"
    severities = {review.critique_severity for review in demands(state)}
    if "CRITICAL" in severities:
        return "hypothesis_refiner"
    if "MAJOR" in severities:
        return "protocol_designer"
    return "principal_investigator"


def demands(state: SocietyState) -> list[ReviewDecision]:
    """Return the reviews that ask for a revision."""
    return [
        review
        for review in (state["peer_review"], state["safety_review"])
        if review.decision == "REVISE"
    ]
