"""The gate lets the better through, keeps the worse out, and seldom takes chance for progress."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from learners.betting import Wager
from learners.gate import GateConfig, Verdict, judge
from learners.logged import Logged
from learners.policies import UNIFORM_VERSION, UniformPolicy
from schemas.decisions import Candidate
from tests import events


class Prefers:
    """Chooses one index with the given probability, the others alike."""

    feature_version = 0

    def __init__(self, index: int, chance: float) -> None:
        self._index = index
        self._chance = chance

    def probabilities(
        self, context: str, candidates: Sequence[Candidate], tenant: str = ""
    ) -> list[float]:
        others = (1 - self._chance) / (len(candidates) - 1)
        return [
            self._chance if index == self._index else others for index in range(len(candidates))
        ]


def evidence(count: int, seed: int, best: float = 0.8, rest: float = 0.5) -> list[Logged]:
    """Return uniformly logged decisions among three, the first of which earns `best` on average."""
    random = Random(seed)
    items = []
    for _ in range(count):
        choice = random.randrange(3)
        reward = min(1.0, max(0.0, random.gauss(best if choice == 0 else rest, 0.2)))
        items.append(Logged(events.decision_of(["a", "b", "c"], choice), reward))
    return items


def test_a_better_policy_passes_and_a_worse_does_not() -> None:
    config = GateConfig()
    better = judge(Prefers(0, 0.95), UniformPolicy(), evidence(100, 0), config)
    worse = judge(Prefers(1, 0.95), UniformPolicy(), evidence(100, 0), config)
    assert better.passed
    assert better.lower_bound > 0
    assert better.metrics["gate_evidence"] == 100
    assert not worse.passed
    assert worse.difference < 0


def test_a_policy_is_surely_no_worse_than_itself_once_there_is_evidence() -> None:
    policy = Prefers(0, 0.6)
    few, many = (judge(policy, policy, evidence(n, 1), GateConfig()) for n in (50, 1000))
    assert few.difference == many.difference == 0.0
    assert not few.passed
    assert many.passed
    assert many.lower_bound < 0.0


def several(count: int, seed: int, gain: float) -> list[Logged]:
    """Return rollouts of six uniform decisions among two, each of which moves the one reward."""
    random = Random(seed)
    items = []
    for rollout in range(count):
        choices = [random.randrange(2) for _ in range(6)]
        solved = [random.random() < 0.5 + gain * (choice == 0) for choice in choices]
        items += [
            Logged(events.decision_of(["a", "b"], choice), sum(solved) / 6, str(rollout))
            for choice in choices
        ]
    return items


def test_beside_the_baseline_120_rollouts_of_six_decisions_show_the_better_policy() -> None:
    better, worse = Prefers(0, 0.985), Prefers(1, 0.985)
    for seed in range(5):
        log = several(120, seed, gain=0.45)
        assert judge(better, UniformPolicy(), log, GateConfig()).passed
        assert not judge(worse, UniformPolicy(), log, GateConfig()).passed


def test_little_evidence_is_no_verdict() -> None:
    few, enough = (
        judge(Prefers(0, 0.9), UniformPolicy(), evidence(n, 2), GateConfig()) for n in (11, 12)
    )
    assert few.passed is False
    assert few.reason == "11 held-out rollouts with a reward, 12 needed"
    assert (few.evidence, few.needed) == (11, 12)
    assert enough.value > 0.5


def test_the_estimate_is_near_the_truth() -> None:
    found = [
        judge(Prefers(0, 0.9), UniformPolicy(), evidence(200, seed), GateConfig()).difference
        for seed in range(50)
    ]
    truth = (0.9 * 0.8 + 0.1 * 0.5) - (0.8 + 0.5 + 0.5) / 3
    assert sum(found) / len(found) == pytest.approx(truth, abs=0.02)


def test_policies_that_are_clearly_worse_are_kept_out_at_the_stated_rate() -> None:
    """The truth is a loss of just the tolerance; a bound of 95 % may be wrong in one of twenty."""
    config = GateConfig(tolerance=0.095)
    passed = [
        judge(Prefers(1, 1.0), UniformPolicy(), evidence(60, s), config).passed for s in range(200)
    ]
    assert sum(passed) / len(passed) <= 0.05


def test_decisions_that_share_a_rollout_and_a_reward_are_one_piece_of_evidence() -> None:
    """Ten copies of each decision once made a worse policy pass in half of all worlds."""
    config = GateConfig(tolerance=0.0)

    def passed(seed: int) -> bool:
        once = evidence(60, seed, best=0.5)
        repeated = [replace(item, rollout=str(n)) for n, item in enumerate(once) for _ in range(10)]
        return judge(Prefers(1, 0.95), UniformPolicy(), repeated, config).passed

    assert sum(passed(seed) for seed in range(100)) <= 5


def test_a_wager_is_won_on_what_is_true_and_seldom_on_what_is_not() -> None:
    def won(mean: float, seed: int) -> bool:
        wager, random = Wager(mean=0.5, least=0.0), Random(seed)
        for _ in range(400):
            wager.take(float(random.random() < mean))
        return Wager.model_validate_json(wager.model_dump_json()).won(0.05)

    assert all(won(0.7, seed) for seed in range(20))
    assert sum(won(0.5, seed) for seed in range(200)) <= 10


def test_a_likely_gain_is_enough_for_a_trial_unless_several_decisions_share_it() -> None:
    preferred, config = Prefers(0, 0.985), GateConfig(least_evidence=4)
    one, six = evidence(8, 1), several(8, 3, gain=0.45)
    alone = judge(preferred, UniformPolicy(), one, config)
    shared = judge(preferred, UniformPolicy(), six, config)
    beside_another = judge(preferred, Prefers(0, 0.6), six, config)
    assert alone.difference > 0 < shared.difference
    assert not any(verdict.passed for verdict in (alone, shared, beside_another))
    assert alone.likely
    assert beside_another.likely
    assert not shared.likely


def test_a_verdict_says_about_how_many_rollouts_one_takes_and_more_for_less_error() -> None:
    """Of the same world, a log of twice as many is enough, and one of a quarter is not."""
    candidate, config = Prefers(0, 0.9), GateConfig()
    first = judge(candidate, UniformPolicy(), evidence(30, 4), config)
    assert first.needed is not None
    enough, few = (
        judge(candidate, UniformPolicy(), evidence(count, 4), config).passed
        for count in (2 * first.needed, first.needed // 4)
    )
    assert (enough, few) == (True, False)
    surer = judge(candidate, UniformPolicy(), evidence(30, 4), config, error=0.0001).needed
    assert surer is not None
    assert surer > first.needed


def test_a_loss_within_the_tolerance_is_likely_enough_and_one_beyond_it_is_hopeless() -> None:
    def verdict(tolerance: float) -> Verdict:
        config = GateConfig(tolerance=tolerance)
        return judge(Prefers(1, 0.9), UniformPolicy(), evidence(60, 5), config)

    loss = -verdict(0.0).difference
    within, beyond = verdict(loss + 0.01), verdict(loss - 0.01)
    assert loss > 0.01
    assert (within.likely, beyond.likely) == (True, False)
    assert within.needed is not None
    assert beyond.needed is None


def test_where_all_rewards_are_alike_no_policy_is_likely_to_be_better() -> None:
    config = GateConfig(tolerance=0.0)
    alike = [replace(item, reward=0.5) for item in evidence(60, 6)]
    verdict = judge(Prefers(0, 0.9), UniformPolicy(), alike, config)
    assert verdict.difference == 0.0
    assert (verdict.likely, verdict.needed) == (False, None)


def test_a_verdict_is_told_with_its_numbers() -> None:
    verdict = judge(Prefers(0, 0.95), UniformPolicy(), evidence(100, 0), GateConfig(), error=0.01)
    for number in (f"{verdict.difference:+.3f}", "99.0%", f"{verdict.lower_bound:+.3f}", "100"):
        assert number in verdict.reason


def test_a_trial_beside_the_baseline_has_the_raised_share_at_once() -> None:
    config = GateConfig(canary_share=0.1, raised_share=0.4)
    assert config.share_beside(UNIFORM_VERSION) == 0.4
    assert config.share_beside("v1") == 0.1
