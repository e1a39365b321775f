"""What the society earns without a judge's model: what can be measured."""

from typing import Any

import pytest
from research_society.rewards import (
    AGENT,
    grade,
    measured,
)

from schemas.rollouts import Rollout, RolloutState, Task
from schemas.trajectories import Trajectory

CONTEXT = "Stay was shorter on the walking ward, and falls were rare."


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


def test_a_rollout_with_everything_right_earns_everything() -> None:
    criteria = measured(finished())
    assert criteria == {
        "decision": 1.0,
        "groundedness": 1.0,
        "completeness": 1.0,
        "efficiency": 1.0,
    }
    graded = grade(Trajectory(rollout=finished(), revision=1))
    assert graded is not None
    assert graded["value"] == pytest.approx(1.0)


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
