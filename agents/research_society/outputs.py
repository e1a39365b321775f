"""What each role must answer: one JSON object, validated here."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]


class Output(BaseModel):
    """Base of the roles' answers; unknown fields are passed over, since models like to add some."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class JuniorResearch(Output):
    """A junior's proposal."""

    hypothesis: Text
    supporting_papers: list[str] = []
    agent_name: str = ""


class Selection(Output):
    """The supervisor's choice among the proposals, by index in the order shown."""

    selected_index: int = Field(ge=0)
    justification: Text


class Refinement(Output):
    """The selected hypothesis, made precise."""

    refined_hypothesis: Text


class Protocol(Output):
    """An experiment that would test the hypothesis."""

    title: Text
    steps: list[Text] = Field(min_length=1)
    safety_concerns: str
    budget_usd: float = Field(ge=0)


class ReviewDecision(Output):
    """A reviewer's word."""

    decision: Literal["APPROVE", "REVISE"]
    critique_severity: Literal["CRITICAL", "MAJOR", "MINOR"] = "MINOR"
    feedback: str


class FinalDecision(Output):
    """The principal investigator's last word: GO if the evidence supports the hypothesis, NO-GO if
    not.
    """

    final_protocol: Protocol
    final_decision: Literal["GO", "NO-GO"]
    final_rationale: Text
