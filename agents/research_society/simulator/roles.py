"""How the simulator plays each role: from the role's input to the JSON object of its answer."""

from collections.abc import Callable
from typing import Any
from zlib import crc32

import orjson

from research_society.simulator.reading import (
    PARTS,
    Finding,
    Part,
    finding_of,
    most_relevant,
    part_of,
    sentences,
)

JUNIORS = ("Geneticist", "Pharmacologist", "Neurologist")
SENTENCES_QUOTED = 2
LEADS: dict[Finding, str] = {
    "positive": "The evidence supports it:",
    "negative": "The evidence speaks against it:",
    "none": "The evidence is open:",
}

Given = dict[str, Any]


class UnplayableError(ValueError):
    """The simulator does not know this role or cannot read what it was given."""


def answer(role: str, given: Given, search_results: list[str]) -> Given:
    """Return the JSON object that a role answers.

    Args:
        role: its title, as in `You are the Geneticist of …`.
        given: the JSON after `Input:` in the user's message.
        search_results: contents of the tool messages, the latest last.

    Raises:
        UnplayableError: see there.
    """
    if role in JUNIORS:
        return _propose(role, given, search_results)
    play = _PLAYS.get(role)
    if play is None:
        raise UnplayableError(f"the simulator plays {', '.join((*JUNIORS, *_PLAYS))}, not {role!r}")
    try:
        return play(given)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UnplayableError(
            f"the {role} was given something else than it expects: {error!r}"
        ) from error


def part_read_by(role: str, goal: str) -> Part:
    """Return which part of the abstract a junior reads. It changes from goal to goal, so no role is
    always right.
    """
    # crc32 and not `hash`, which Python seeds anew in each process.
    return PARTS[(crc32(goal.encode()) + JUNIORS.index(role)) % len(PARTS)]


def _propose(role: str, given: Given, search_results: list[str]) -> Given:
    """Quote the junior's part of the best matching paper."""
    goal = str(given.get("research_goal", ""))
    papers = _papers(search_results)
    if not papers:
        return {
            "hypothesis": f"{LEADS['none']} nothing was found.",
            "supporting_papers": [],
            "agent_name": role,
        }
    paper = papers[0]
    by_part: dict[Part, list[str]] = {part: [] for part in PARTS}
    for section in paper.get("sections", []):
        by_part[part_of(str(section.get("label", "")))].extend(
            sentences(str(section.get("text", "")))
        )
    read = (
        by_part[part_read_by(role, goal)]
        or by_part["background"]
        or [s for part in PARTS for s in by_part[part]]
    )
    quoted = " ".join(most_relevant(goal, read, SENTENCES_QUOTED))
    return {
        "hypothesis": f"{LEADS[finding_of(quoted)]} {quoted}",
        "supporting_papers": [str(paper.get("id", ""))],
        "agent_name": role,
    }


def _papers(search_results: list[str]) -> list[Given]:
    if not search_results:
        return []
    try:
        found = orjson.loads(search_results[-1])
    except orjson.JSONDecodeError:
        return []
    return [paper for paper in found if isinstance(paper, dict)] if isinstance(found, list) else []


def _justify(given: Given) -> Given:
    chosen = int(given["chosen_index"])
    proposal = given["hypotheses"][chosen]["hypothesis"]
    return {"selected_index": chosen, "justification": f"It rests on what was found: {proposal}"}


def _refine(given: Given) -> Given:
    return {"refined_hypothesis": _without_lead(given["selected_hypothesis"])}


def _design(given: Given) -> Given:
    """Design three steps; the power calculation comes only when a reviewer has asked for it."""
    hypothesis = given["refined_hypothesis"]
    steps = [
        f"State the hypothesis: {hypothesis}",
        "Recruit two comparable groups and record the outcome in each.",
        "Compare the groups with a test chosen before the data are seen.",
    ]
    if finding_of(hypothesis) != "none" or given.get("notices"):
        steps.append("Calculate the sample size that the expected effect needs.")
    return {
        "title": f"A test of: {given['research_goal']}",
        "steps": steps,
        "safety_concerns": "Informed consent; an independent board reviews adverse events.",
        "budget_usd": 50_000 + 10_000 * len(steps),
    }


def _review_science(given: Given) -> Given:
    if any("sample size" in step for step in given["protocol"]["steps"]):
        return {
            "decision": "APPROVE",
            "critique_severity": "MINOR",
            "feedback": "The protocol can be run as it is.",
        }
    feedback = "No effect is expected from this evidence, so say how many subjects are needed."
    return {"decision": "REVISE", "critique_severity": "MAJOR", "feedback": feedback}


def _review_safety(given: Given) -> Given:
    if "consent" in given["protocol"]["safety_concerns"].lower():
        return {
            "decision": "APPROVE",
            "critique_severity": "MINOR",
            "feedback": "Subjects are protected.",
        }
    return {
        "decision": "REVISE",
        "critique_severity": "CRITICAL",
        "feedback": "Nothing protects the subjects.",
    }


def _decide(given: Given) -> Given:
    """Go where the quoted evidence points; evidence that states no finding supports nothing."""
    hypothesis = given["refined_hypothesis"]
    return {
        "final_protocol": given["protocol"],
        "final_decision": "GO" if finding_of(hypothesis) == "positive" else "NO-GO",
        "final_rationale": hypothesis,
    }


def _without_lead(hypothesis: str) -> str:
    for lead in LEADS.values():
        hypothesis = hypothesis.removeprefix(lead)
    return hypothesis.strip()


_PLAYS: dict[str, Callable[[Given], Given]] = {
    "Supervisor": _justify,
    "Hypothesis Refiner": _refine,
    "Protocol Designer": _design,
    "Peer Reviewer": _review_science,
    "Safety Officer": _review_safety,
    "Principal Investigator": _decide,
}
