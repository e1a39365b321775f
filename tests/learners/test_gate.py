"""The gate lets the better through, keeps the worse out, and seldom takes chance for progress."""

from collections.abc import Sequence
from random import Random

import pytest

from learners.gate import GateConfig, HeldOut, judge
from learners.policies import UniformPolicy
from schemas.decisions import Candidate
from tests import events


class Prefers:
    """Chooses one index with the given probability, the others alike."""

    feature_version = 0

    def __init__(self, index: int, chance: float) -> None:
        self._index = index
        self._chance = chance

    def probabilities(self, context: str, candidates: Sequence[Candidate], tenant: str = "") -> list[float]:
        others = (1 - self._chance) / (len(candidates) - 1)
        return [self._chance if index == self._index else others for index in range(len(candidates))]


def evidence(count: int, seed: int, best: float = 0.8, rest: float = 0.5) -> list[HeldOut]:
    """Return uniformly logged decisions among three, the first of which earns `best` on average."""
    random = Random(seed)
    items = []
    for _ in range(count):
        choice = random.randrange(3)
        reward = min(1.0, max(0.0, random.gauss(best if choice == 0 else rest, 0.2)))
        items.append(HeldOut(events.decision_of(["a", "b", "c"], choice), reward))
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


def test_a_policy_is_no_better_than_itself() -> None:
    verdict = judge(UniformPolicy(), UniformPolicy(), evidence(50, 1), GateConfig())
    assert (verdict.difference, verdict.lower_bound) == (0.0, 0.0)


def test_little_evidence_is_no_verdict() -> None:
    verdict = judge(Prefers(0, 0.9), UniformPolicy(), evidence(11, 2), GateConfig())
    assert not verdict.passed
    assert verdict.reason == "11 held-out decisions, 12 needed"


def test_the_estimate_is_near_the_truth() -> None:
    found = [
        judge(Prefers(0, 0.9), UniformPolicy(), evidence(200, seed), GateConfig()).difference for seed in range(50)
    ]
    truth = (0.9 * 0.8 + 0.1 * 0.5) - (0.8 + 0.5 + 0.5) / 3
    assert sum(found) / len(found) == pytest.approx(truth, abs=0.02)


def test_policies_that_are_clearly_worse_are_kept_out_at_the_stated_rate() -> None:
    """The truth is a loss of 0.19, far over the tolerance; a bound of 90 % may be wrong in one of ten."""
    passed = [judge(Prefers(1, 0.95), UniformPolicy(), evidence(40, s), GateConfig()).passed for s in range(200)]
    assert sum(passed) / len(passed) <= 0.1
