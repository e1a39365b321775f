"""The reward of the research society: what can be measured without a judge's model."""

import re
from typing import Any

from research_society.limits import MAX_TURNS
from schemas.rollouts import Rollout
from schemas.trajectories import Trajectory

AGENT = "research-society"

MEASURED_WEIGHTS = {"decision": 0.5, "groundedness": 0.2, "completeness": 0.15, "efficiency": 0.15}
"""Weights of the criteria that can be measured. They are others than the judge's model scores."""

GROUNDED_SHARE = 0.6
FULL_PASS_TURNS = 9
ALIGNED = {"GO": "yes", "NO-GO": "no"}

_WORD = re.compile(r"[a-z]{4,}|\d+")
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+")


def grade(trajectory: Trajectory) -> dict[str, Any] | None:
    """Return the measured criteria and their weighted sum; None if nothing can be measured."""
    criteria = measured(trajectory.rollout)
    if criteria is None:
        return None
    value = sum(weight * criteria[name] for name, weight in MEASURED_WEIGHTS.items())
    return {"value": value, "criteria": criteria, "comment": "measured, no judge's model"}


def measured(rollout: Rollout) -> dict[str, float] | None:
    """Return the measured criteria of a finished rollout, each in [0, 1].

    - decision: 1 if GO meets the label yes or NO-GO the label no, else 0 (maybe is never met).
    - groundedness: share of the claims (sentences of hypothesis and rationale) whose words are
      mostly the abstract's.
    - completeness: share of the parts of the protocol and the decision that were filled in.
    - efficiency: 1 for a single pass of nine turns, 0 at the turn limit, linear between.

    Returns:
        None for a rollout of another agent or without a label: there is nothing to measure against.
    """
    task, output = rollout.task, rollout.output
    if (
        rollout.agent != AGENT
        or task is None
        or task.expected is None
        or not isinstance(output, dict)
    ):
        return None
    context = task.input.get("context", "") if isinstance(task.input, dict) else ""
    return {
        "decision": float(ALIGNED.get(str(output.get("final_decision"))) == task.expected),
        "groundedness": _groundedness(output, str(context)),
        "completeness": _completeness(output),
        "efficiency": _efficiency(rollout.turns),
    }


def _groundedness(output: dict[str, Any], context: str) -> float:
    known = _words(context)
    texts = (str(output.get("refined_hypothesis", "")), str(output.get("final_rationale", "")))
    claims = [claim for text in texts for claim in _SENTENCE_END.split(text) if _words(claim)]
    # A rollout that claims nothing must not earn more than one that claims something wrong.
    if not claims:
        return 0.0
    grounded = [
        len(_words(claim) & known) / len(_words(claim)) >= GROUNDED_SHARE for claim in claims
    ]
    return sum(grounded) / len(grounded)


def _completeness(output: dict[str, Any]) -> float:
    protocol = output.get("final_protocol")
    protocol = protocol if isinstance(protocol, dict) else {}
    filled: list[bool] = [
        bool(protocol.get("title")),
        len(protocol.get("steps") or []) >= 3,
        bool(protocol.get("safety_concerns")),
        bool((protocol.get("budget_usd") or 0) > 0),
        bool(output.get("final_rationale")),
    ]
    return sum(filled) / len(filled)


def _efficiency(turns: int | None) -> float:
    if turns is None:
        return 0.0
    left: float = (MAX_TURNS - turns) / (MAX_TURNS - FULL_PASS_TURNS)
    return min(1.0, max(0.0, left))


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
