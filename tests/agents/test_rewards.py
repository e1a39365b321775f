"""Rewards: the judge's weights, what is measured without one, and no reward from a judge that
fails.
"""

from typing import Any

import orjson
import pytest
from research_society.rewards import (
    AGENT,
    JUDGE_WEIGHTS,
    MEASURED_WEIGHTS,
    UnusableScorecardError,
    judge_prompt,
    judged,
    measured,
    weighted,
)

from schemas.rollouts import Rollout, RolloutState, Task

CONTEXT = "Stay was shorter on the walking ward, and falls were rare."
SCORES = dict.fromkeys(JUDGE_WEIGHTS, 0.5)


def finished(
    expected: str | None = "yes", agent: str = AGENT, turns: int | None = 9, **output: Any
) -> Rollout:
    protocol = {"title": "t", "steps": ["a", "b", "c"], "safety_concerns": "s", "budget_usd": 1.0}
    result = {
        "final_decision": "GO",
        "refined_hypothesis": "Stay was shorter on the walking ward.",
        "final_rationale": "Falls were rare.",
        "final_protocol": protocol,
    }
    task = Task(id="t", input={"goal": "g", "context": CONTEXT}, expected=expected)
    return Rollout(
        state=RolloutState.SUCCEEDED, agent=agent, task=task, output=result | output, turns=turns
    )


def test_the_judges_weights_are_the_articles() -> None:
    assert sum(JUDGE_WEIGHTS.values()) == pytest.approx(1.0)
    means = {
        "novelty": 0.76,
        "feasibility": 0.85,
        "impact": 0.88,
        "clarity": 0.91,
        "groundedness": 0.89,
        "efficiency": 0.82,
    }
    assert weighted(means, JUDGE_WEIGHTS) == pytest.approx(
        0.8655
    )  # what the article's own means give; it prints 0.81
    with pytest.raises(KeyError):
        weighted({"novelty": 1.0}, JUDGE_WEIGHTS)


def test_a_rollout_with_everything_right_earns_everything() -> None:
    criteria = measured(finished())
    assert criteria == {
        "decision": 1.0,
        "groundedness": 1.0,
        "completeness": 1.0,
        "efficiency": 1.0,
    }
    assert weighted(criteria, MEASURED_WEIGHTS) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("decision", "expected", "score"),
    [
        ("GO", "yes", 1.0),
        ("NO-GO", "no", 1.0),
        ("GO", "no", 0.0),
        ("NO-GO", "yes", 0.0),
        ("GO", "maybe", 0.0),
        (None, "no", 0.0),
    ],
)
def test_the_decision_is_measured_against_the_label(
    decision: str | None, expected: str, score: float
) -> None:
    criteria = measured(finished(expected, final_decision=decision))
    assert criteria is not None
    assert criteria["decision"] == score


@pytest.mark.parametrize(
    ("turns", "score"), [(9, 1.0), (12, 0.5), (15, 0.0), (30, 0.0), (None, 0.0)]
)
def test_every_extra_turn_costs(turns: int | None, score: float) -> None:
    criteria = measured(finished(turns=turns))
    assert criteria is not None
    assert criteria["efficiency"] == score


def test_claims_that_the_abstract_does_not_make_are_not_grounded() -> None:
    criteria = measured(finished(final_rationale="Quantum computers cure baldness overnight."))
    assert criteria is not None
    assert criteria["groundedness"] == 0.5
    empty = measured(finished(final_rationale="", refined_hypothesis=""))
    assert empty is not None
    assert empty["groundedness"] == 0.0
    assert empty["completeness"] == 0.8


def test_what_has_no_label_or_is_another_agents_is_not_measured() -> None:
    assert measured(finished(None)) is None
    assert measured(finished(agent="somebody")) is None


def test_a_judges_scores_are_read_from_among_its_words() -> None:
    answer = f"Here you are:\n```json\n{orjson.dumps(SCORES).decode()}\n```"
    assert judged(finished(), lambda _: answer).novelty == 0.5


def test_a_judge_is_asked_again_once_with_the_reason() -> None:
    answers = ["no idea", orjson.dumps(SCORES).decode()]
    asked: list[list[dict[str, str]]] = []

    def ask(messages: list[dict[str, str]]) -> str:
        asked.append(messages)
        return answers[len(asked) - 1]

    assert judged(finished(), ask).impact == 0.5
    assert len(asked) == 2
    assert "Invalid JSON" in asked[1][-1]["content"]


@pytest.mark.parametrize(
    "answer", ["no idea", "{}", orjson.dumps(SCORES | {"impact": 1.5}).decode()]
)
def test_a_judge_that_gives_no_scores_gives_no_reward(answer: str) -> None:
    with pytest.raises(UnusableScorecardError, match="no usable scores"):
        judged(finished(), lambda _: answer)


def test_braces_in_a_protocol_are_only_text() -> None:
    prompt = judge_prompt(finished(final_rationale="{not a template}"))
    assert "{not a template}" in prompt[1]["content"]
