"""Rewards of the research society: six criteria from a judge's model, or what can be measured
without one.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from research_society.limits import MAX_TURNS
from schemas.rollouts import Rollout
from schemas.serialization import readable

AGENT = "research-society"

JUDGE_WEIGHTS = {
    "novelty": 0.10,
    "feasibility": 0.20,
    "impact": 0.30,
    "clarity": 0.15,
    "groundedness": 0.20,
    "efficiency": 0.05,
}
"""The article's weights of the six criteria."""

MEASURED_WEIGHTS = {"decision": 0.5, "groundedness": 0.2, "completeness": 0.15, "efficiency": 0.15}
"""Weights of what is measured without a judge. These are other criteria than the judge's, under
another name.
"""

GROUNDED_SHARE = 0.6
FULL_PASS_TURNS = 9
ALIGNED = {"GO": "yes", "NO-GO": "no"}

_WORD = re.compile(r"[a-z]{4,}|\d+")
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+")

Score = Annotated[float, Field(ge=0.0, le=1.0)]


class UnusableScorecardError(Exception):
    """The judge answered, but not with scores. There is no reward then."""


class Scorecard(BaseModel):
    """The judge's six scores."""

    model_config = ConfigDict(extra="ignore")

    novelty: Score
    feasibility: Score
    impact: Score
    clarity: Score
    groundedness: Score
    efficiency: Score
    justification: str = ""


def weighted(scores: dict[str, float], weights: dict[str, float]) -> float:
    """Return the weighted sum; every criterion must be there.

    Raises:
        KeyError: a criterion is missing. It is not taken for 0, which would be a made-up score.
    """
    return sum(weight * scores[name] for name, weight in weights.items())


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


def judge_prompt(rollout: Rollout) -> list[dict[str, str]]:
    """Return the judge's messages for a finished rollout. Built as data: braces in protocols are
    only text.
    """
    task = rollout.task
    given = {"task": task.input if task else None, "result": rollout.output, "turns": rollout.turns}
    criteria = ", ".join(JUDGE_WEIGHTS)
    system = (
        "You are the Judge of a biomedical research society. Score the result against its"
        " source from 0 to 1 by these"
        f" criteria: {criteria}. Groundedness falls with every claim that the source does not"
        " support."
        f" Answer with one JSON object and nothing else. It must match this JSON Schema:\n"
        f"{orjson.dumps(Scorecard.model_json_schema()).decode()}"
    )
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": orjson.dumps(given).decode()},
    ]


def judged(rollout: Rollout, ask: Callable[[list[dict[str, str]]], str]) -> Scorecard:
    """Return the judge's scores, asking once more if the first answer cannot be read.

    Args:
        ask: sends messages to the judge's model and returns its text.

    Raises:
        UnusableScorecardError: the second answer cannot be read either.
    """
    messages = judge_prompt(rollout)
    answer = ask(messages)
    try:
        return Scorecard.model_validate_json(_json_part(answer))
    except ValidationError as error:
        reason = readable(error)
    again = f"That cannot be used: {reason}. Answer again with the JSON object alone."
    answer = ask(
        [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": again}]
    )
    try:
        return Scorecard.model_validate_json(_json_part(answer))
    except ValidationError as error:
        raise UnusableScorecardError(
            f"the judge gave no usable scores: {readable(error)}"
        ) from error


def _json_part(text: str) -> str:
    """Return the text from its first opening to its last closing brace, which strips fences and
    chatter.
    """
    start, end = text.find("{"), text.rfind("}")
    return text[start : end + 1] if 0 <= start < end else text
