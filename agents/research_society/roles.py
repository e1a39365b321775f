"""The nine roles: their prompts, the form of their answers, and whether they have tools."""

from dataclasses import dataclass

import orjson

from research_society.outputs import (
    FinalDecision,
    JuniorResearch,
    Output,
    Protocol,
    Refinement,
    ReviewDecision,
    Selection,
)


@dataclass(frozen=True)
class Role:
    """One role.

    Attributes:
        name: the node's name in the graph and in spans.
        title: what the model is told it is.
        temperature: 0.7 for juniors, who should differ; 0.1 for seniors; 0 for those who decide.
    """

    name: str
    title: str
    duty: str
    output: type[Output]
    temperature: float
    has_tools: bool = False

    @property
    def system_prompt(self) -> str:
        """What the model is told. Text, not a template: the schema's braces are never formatted."""
        schema = orjson.dumps(self.output.model_json_schema()).decode()
        return (
            f"You are the {self.title} of a biomedical research society. {self.duty}\n"
            "Answer with one JSON object and nothing else. It must match this JSON"
            f" Schema:\n{schema}"
        )


def _junior(name: str, title: str, view: str) -> Role:
    duty = (
        f"You read the literature from the point of view of {view}. Search for the paper that"
        " the research goal is"
        " about, then propose one hypothesis that answers the goal, in the words of the"
        " evidence you found."
    )
    return Role(name, title, duty, JuniorResearch, temperature=0.7, has_tools=True)


JUNIORS = (
    _junior("geneticist", "Geneticist", "genes and mechanisms"),
    _junior("pharmacologist", "Pharmacologist", "drugs and interventions"),
    _junior("neurologist", "Neurologist", "patients and outcomes"),
)
SUPERVISOR = Role(
    "supervisor",
    "Supervisor",
    "The society's policy has chosen one of the juniors' hypotheses. Say why that one is worth"
    " pursuing.",
    Selection,
    temperature=0.0,
)
HYPOTHESIS_REFINER = Role(
    "hypothesis_refiner",
    "Hypothesis Refiner",
    "Make the selected hypothesis precise and testable without claiming more than its evidence"
    " says.",
    Refinement,
    temperature=0.1,
    has_tools=True,
)
PROTOCOL_DESIGNER = Role(
    "protocol_designer",
    "Protocol Designer",
    "Design an experiment that would test the hypothesis, answering what reviewers have asked for.",
    Protocol,
    temperature=0.1,
    has_tools=True,
)
PEER_REVIEWER = Role(
    "peer_reviewer",
    "Peer Reviewer",
    "Review the protocol's science. CRITICAL sends back the hypothesis, MAJOR the protocol.",
    ReviewDecision,
    temperature=0.0,
)
SAFETY_OFFICER = Role(
    "safety_officer",
    "Safety Officer",
    "Review the protocol's safety. CRITICAL sends back the hypothesis, MAJOR the protocol.",
    ReviewDecision,
    temperature=0.0,
)
PRINCIPAL_INVESTIGATOR = Role(
    "principal_investigator",
    "Principal Investigator",
    "Decide: GO if the evidence in the hypothesis answers the research goal with yes, NO-GO if"
    " it does not.",
    FinalDecision,
    temperature=0.0,
)

ROLES: dict[str, Role] = {
    role.name: role
    for role in (
        *JUNIORS,
        SUPERVISOR,
        HYPOTHESIS_REFINER,
        PROTOCOL_DESIGNER,
        PEER_REVIEWER,
        SAFETY_OFFICER,
        PRINCIPAL_INVESTIGATOR,
    )
}

MODELS: dict[str, str] = {
    "geneticist": "junior_researcher_llm",
    "pharmacologist": "junior_researcher_llm",
    "neurologist": "junior_researcher_llm",
    "supervisor": "supervisor_llm",
    "hypothesis_refiner": "senior_researcher_llm",
    "protocol_designer": "senior_researcher_llm",
    "peer_reviewer": "review_board_llm",
    "safety_officer": "review_board_llm",
    "principal_investigator": "review_board_llm",
}
"""Role to the logical model that it calls."""
