"""History learned again with another reward, and judged without having been lived."""

from random import Random
from typing import Any

import pytest

from learners.bandit import BanditConfig, BanditLearner
from learners.evaluation import candidate_values
from learners.logged import Logged
from learners.modelled_rewards import regrets
from learners.what_if import (
    RewardFunctionError,
    held_out,
    refit,
    run_replay_method,
    weighted_mean,
    with_rewards_of,
)
from schemas.examples import Example, ExampleEvent
from tests import events

TEXTS = ["a short answer", "a long answer", "a joke"]


def history(count: int, seed: int = 0) -> list[ExampleEvent]:
    """Return uniform decisions, a fifth held out; the long answer earns most, the short one has the
    best clarity.
    """
    random = Random(seed)
    found = []
    for number in range(count):
        choice = random.randrange(3)
        value = min(1.0, max(0.0, random.gauss((0.4, 0.8, 0.1)[choice], 0.1)))
        split: Any = "validation" if number % 5 == 0 else "train"
        found.append(
            events.example(
                TEXTS, choice, value, split=split, criteria={"clarity": (0.9, 0.3, 0.5)[choice]}
            )
        )
    return found


def clarity(example: Example) -> float | None:
    return example.criteria.get("clarity")


def test_another_reward_makes_another_policy_and_both_are_told_apart_on_held_out_decisions() -> (
    None
):
    logged = history(400)
    otherwise = with_rewards_of(logged, clarity)
    as_it_is = refit(BanditLearner("p"), logged, 5)
    what_if = refit(BanditLearner("p"), otherwise, 5)
    assert [point.examples for point in as_it_is] == [64, 128, 192, 256, 320]
    evidence = held_out(otherwise, BanditConfig())
    assert len(evidence) == 80
    assert weighted_mean(what_if[-1].policy, evidence) == pytest.approx(0.9, abs=0.03)
    assert weighted_mean(as_it_is[-1].policy, evidence) == pytest.approx(0.3, abs=0.03)


def test_the_replay_method_tells_what_a_learner_would_have_earned() -> None:
    found = run_replay_method(BanditLearner("p"), history(900), seed=1)
    assert found.shown == 900
    assert 200 < len(found.rewards) < 400
    late = found.rewards[150:]
    assert sum(late) / len(late) == pytest.approx(0.8, abs=0.05)


def test_decisions_that_a_policy_made_say_nothing_of_another_learner_by_replay() -> None:
    made = events.example(TEXTS, 0, 1.0, version="000010-abc")
    corrected = events.example(TEXTS, 0, 1.0, reward_revision=2)
    assert run_replay_method(BanditLearner("p"), [made, corrected], seed=0).shown == 0


def test_a_function_may_leave_examples_out() -> None:
    assert with_rewards_of(history(10), lambda _: None) == []


@pytest.mark.parametrize(
    ("returned", "says"),
    [(2.0, "returned 2.0"), ("high", "returned 'high'"), (float("nan"), "nan")],
)
def test_what_is_no_reward_is_refused(returned: Any, says: str) -> None:
    with pytest.raises(RewardFunctionError, match=says):
        with_rewards_of(history(1), lambda _: returned)


def test_a_function_that_fails_is_named() -> None:
    with pytest.raises(RewardFunctionError, match="KeyError: 'missing'"):
        with_rewards_of(history(1), lambda example: example.criteria["missing"])


def test_a_state_of_no_examples_is_no_policy() -> None:
    assert (
        refit(
            BanditLearner("p", BanditConfig()),
            [events.example(TEXTS, 0, 1.0, split="validation")],
            3,
        )
        == []
    )


def logged(count: int) -> list[Logged]:
    return [Logged(e.payload.body.decision, e.payload.reward) for e in history(count)]  # type: ignore[union-attr]


def test_each_candidate_has_a_value_where_it_was_offered() -> None:
    found = candidate_values(logged(300))
    assert set(found) == {"junior-0", "junior-1", "junior-2"}
    assert found["junior-1"].offered == 300
    assert sum(value.chosen for value in found.values()) == 300
    assert found["junior-1"].value == pytest.approx(0.8, abs=0.03)
    never = candidate_values([item for item in logged(300) if item.decision.choice != 2])
    assert never["junior-2"].value is None


def test_regret_is_what_the_best_candidate_would_have_earned_more() -> None:
    log = logged(600)
    found = regrets(log)
    for choice, missed in enumerate((0.4, 0.0, 0.7)):
        of = [
            regret
            for regret, item in zip(found, log, strict=True)
            if item.decision.choice == choice
        ]
        assert sum(of) / len(of) == pytest.approx(missed, abs=0.06)
