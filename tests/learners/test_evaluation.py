"""Off-policy evaluation is right on simulated logs, agrees with `vw-estimators`, and its bounds
hold at all times.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from estimators.bandits import ips as vw_ips
from estimators.bandits import snips as vw_snips
from hypothesis import given
from hypothesis import strategies as st

from learners.bounds import decisions_needed, lower_bound
from learners.evaluation import compare, evaluate
from learners.gains import compare_on, difference_deviation
from learners.logged import Logged
from learners.policies import UniformPolicy
from schemas.decisions import Candidate, Decision

TRUE_REWARDS = (0.2, 0.5, 0.8)


class Fixed:
    """A policy that always has the same probabilities."""

    feature_version = 0

    def __init__(self, *probabilities: float) -> None:
        self._probabilities = list(probabilities)

    def probabilities(
        self, context: str, candidates: Sequence[Candidate], tenant: str = ""
    ) -> list[float]:
        return self._probabilities


WORST, MIDDLING, BEST = Fixed(0.8, 0.1, 0.1), Fixed(0.1, 0.8, 0.1), Fixed(0.1, 0.1, 0.8)


def value_of(policy: Fixed) -> float:
    return sum(p * r for p, r in zip(policy.probabilities("", []), TRUE_REWARDS, strict=True))


def simulated(count: int, seed: int, logging: Any = None) -> list[Logged]:
    """Return a log of three candidates with Bernoulli rewards."""
    chance = random.Random(seed)
    candidates = [Candidate(text=f"option {name}") for name in ("alpha", "beta", "gamma")]
    probabilities = (logging or UniformPolicy()).probabilities("", candidates)
    log = []
    for _ in range(count):
        choice = chance.choices(range(3), probabilities)[0]
        decision = Decision(
            policy="p",
            policy_version="v",
            feature_version=0,
            candidates=candidates,
            probabilities=probabilities,
            choice=choice,
            propensity=probabilities[choice],
        )
        log.append(Logged(decision, float(chance.random() < TRUE_REWARDS[choice])))
    return log


@pytest.mark.parametrize("policy", [WORST, MIDDLING, BEST])
@pytest.mark.parametrize("logging", [UniformPolicy(), Fixed(0.6, 0.3, 0.1)])
def test_every_estimate_comes_near_the_truth(policy: Fixed, logging: Any) -> None:
    found = evaluate(policy, simulated(6000, 1, logging))
    for estimate in (found.ips, found.snips, found.direct, found.doubly_robust, found.switch):
        assert estimate == pytest.approx(value_of(policy), abs=0.05)
    assert found.interval.low <= value_of(policy) <= found.interval.high
    assert found.interval.high - found.interval.low < 0.25


def test_point_estimates_are_those_of_vw_estimators() -> None:
    log = simulated(500, 2, Fixed(0.6, 0.3, 0.1))
    ips, snips = vw_ips.Estimator(), vw_snips.Estimator()
    for item in log:
        chance = BEST.probabilities("", [])[item.decision.choice]
        for estimator in (ips, snips):
            estimator.add_example(item.decision.propensity, item.reward, chance)
    found = evaluate(BEST, log)
    assert found.ips == pytest.approx(ips.get())
    assert found.snips == pytest.approx(snips.get())


@pytest.mark.slow
def test_doubly_robust_varies_less_than_inverse_propensities() -> None:
    found = [evaluate(BEST, simulated(200, seed, Fixed(0.6, 0.3, 0.1))) for seed in range(40)]
    assert np.std([f.doubly_robust for f in found]) < 0.8 * np.std([f.ips for f in found])
    assert np.mean([f.doubly_robust for f in found]) == pytest.approx(value_of(BEST), abs=0.05)


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """95 % two-sided, each looked at only at its end; the benchmark looks at all times, over a
    thousand logs.
    """
    missed = 0
    for seed in range(200):
        interval = compare(BEST, WORST, simulated(150, seed, Fixed(0.5, 0.3, 0.2))).interval
        missed += not interval.low <= value_of(BEST) - value_of(WORST) <= interval.high
    assert missed <= 16  # 10 expected at most; more than 16 of 200 has probability 2 %


@pytest.mark.slow
def test_looking_all_the_time_does_not_make_it_wrong() -> None:
    """Under no difference the bound may ever exceed zero in 5 % of the logs, at whatever time one
    stops.
    """
    wrong = 0
    for seed in range(300):
        values = (
            np.random.default_rng(seed).choice(np.array([-1.0, 1.0]), size=300).astype(np.float64)
        )
        wrong += lower_bound(values, -1.0, 0.05) > 0  # the bound remembers every time before
    assert wrong <= 24  # 15 expected at most


def gain_is_sure(
    policy: Fixed, against: Fixed, log: Sequence[Logged], error: float, tolerance: float = 0.0
) -> bool:
    return compare_on(policy, against, log, error).bound > -tolerance


def test_a_better_policy_is_found_and_an_equal_one_is_not() -> None:
    log = simulated(1500, 3, MIDDLING)
    assert gain_is_sure(BEST, MIDDLING, log, error=0.05)
    assert not gain_is_sure(MIDDLING, MIDDLING, log, error=0.05)
    assert gain_is_sure(MIDDLING, MIDDLING, log, error=0.05, tolerance=0.01)
    assert not gain_is_sure(WORST, MIDDLING, log, error=0.05)
    found = compare(BEST, MIDDLING, log)
    assert found.difference == pytest.approx(value_of(BEST) - value_of(MIDDLING), abs=0.05)
    assert found.interval.low > 0


@pytest.mark.slow
def test_the_power_calculator_says_enough_and_not_far_too_much() -> None:
    deviation = difference_deviation(BEST, MIDDLING, simulated(4000, 4, MIDDLING))
    needed = decisions_needed(value_of(BEST) - value_of(MIDDLING), deviation, error=0.05, power=0.8)
    told = [
        gain_is_sure(BEST, MIDDLING, simulated(needed, 100 + seed, MIDDLING), error=0.05)
        for seed in range(60)
    ]
    assert sum(told) >= 42  # 48 expected
    early = [
        gain_is_sure(BEST, MIDDLING, simulated(needed // 4, seed, MIDDLING), error=0.05)
        for seed in range(60)
    ]
    assert sum(early) < 42


def test_diagnostics_tell_of_thin_overlap_and_of_wrong_propensities() -> None:
    log = simulated(1000, 5, Fixed(0.9, 0.09, 0.01))
    thin = evaluate(BEST, log).diagnostics
    fine = evaluate(Fixed(0.9, 0.09, 0.01), log).diagnostics
    assert thin.effective < 100 < fine.effective
    assert fine.effective == pytest.approx(1000)
    assert thin.largest_weight == pytest.approx(80)
    assert abs(fine.mean_weight - 1) < 1e-9
    lied = [
        Logged(
            item.decision.model_copy(update={"probabilities": [1 / 3] * 3, "propensity": 1 / 3}),
            item.reward,
        )
        for item in log
    ]
    wrong = evaluate(BEST, lied).diagnostics
    assert abs(wrong.mean_weight - 1) > 10 * wrong.mean_weight_error


@given(st.lists(st.floats(0, 5), min_size=2, max_size=40), st.floats(0.01, 0.5))
def test_a_bound_is_no_higher_than_anything_it_could_be(values: list[float], error: float) -> None:
    bound = lower_bound(np.array(values), 0.0, error)
    assert 0.0 <= bound <= max(values) or max(values) == 0.0
    assert bound >= lower_bound(np.array(values), 0.0, error / 2) - 1e-9


@given(st.permutations([0.0, 1.0, 1.0, 0.5, 1.0, 0.25]))
def test_more_evidence_never_lowers_the_bound(values: list[float]) -> None:
    bounds = [lower_bound(np.array(values * times), 0.0, 0.1) for times in (1, 2, 4)]
    assert bounds == sorted(bounds)


@pytest.mark.parametrize("reward", [-0.1, 1.1, float("nan")])
def test_a_reward_out_of_range_is_refused(reward: float) -> None:
    (item, *_) = simulated(1, 1)
    with pytest.raises(ValueError, match="not in"):
        Logged(item.decision, reward)


def test_too_little_to_say_anything_is_said() -> None:
    with pytest.raises(ValueError, match="at least two"):
        evaluate(BEST, simulated(1, 1))
    with pytest.raises(ValueError, match="at least two"):
        compare(BEST, WORST, simulated(1, 1))
    with pytest.raises(ValueError, match="positive"):
        decisions_needed(0.0, 1.0)
