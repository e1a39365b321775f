"""Simulated worlds in which gates, trials and watches were wrong once; and the simulation itself.

`make bench-evidence` plays a thousand of each and more of them.
"""

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest

from learners.betting import BOLD, FRACTIONS, Wager
from learners.trial import Paired
from tests.benchmarks.evidence import Pairs, World, off_policy, trial, watch, won_at

WORLDS = 40
MOST_WRONG = 7
"""With a true error of 5 %, more than 7 of 40 are wrong in one of 300 runs."""


def test_the_simulation_pairs_and_bets_as_what_is_deployed_does() -> None:
    random, simulated, wager = Random(5), Pairs(0.3, 0.02), Wager(mean=-0.02, least=-1.0)
    paired, won = Paired.of(0.02, 0.3), None
    for number in range(600):
        new = random.random() < 0.3
        value = float(random.random() < (0.7 if new else 0.5))
        simulated.take(number, new, value)
        paired.take(new, value)
    for number, difference in enumerate(simulated.differences, 1):
        wager.take(difference)
        won = won or (number if wager.won(0.05) else None)
    assert paired.pairs == len(simulated.differences)
    assert paired.total == pytest.approx(simulated.total)
    assert won is not None
    assert won_at(np.array(simulated.differences), -0.02, 0.05) == won


@pytest.mark.parametrize("shares", [FRACTIONS, BOLD])
def test_wagers_of_the_simulation_are_those_that_are_deployed(shares: Sequence[float]) -> None:
    wager, won = Wager(mean=-0.05, least=-1.0, bold=shares is BOLD), None
    for number in range(1, 400):
        wager.take(0.0)
        won = won or (number if wager.won(0.05) else None)
    assert won is not None
    assert won_at(np.zeros(400), -0.05, 0.05, shares) == won


@pytest.mark.parametrize(
    ("world", "promoted"),
    [
        pytest.param(World(gain=-0.05), False, id="worse"),
        pytest.param(World(fails=0.3, gain=0.3), False, id="fails where it would earn little"),
        pytest.param(World(gain=-0.2, bad_news_h=72, known_h=2), False, id="bad news comes late"),
        pytest.param(World(gain=0.2, bad_news_h=24), True, id="better, and bad news comes late"),
        pytest.param(World(gain=0.2), True, id="better"),
    ],
)
def test_a_trial_is_seldom_wrong(world: World, promoted: bool) -> None:
    passed = [trial(world, seed) == "passed" for seed in range(WORLDS)]
    assert sum(verdict is not promoted for verdict in passed) <= MOST_WRONG


@pytest.mark.parametrize("drift", [-0.3, 0.3])
def test_a_watch_sees_what_dropped_and_not_how_the_world_went(drift: float) -> None:
    equal = [watch(World(drift=drift), seed) for seed in range(WORLDS // 2)]
    worse = [watch(World(drift=drift, gain=-0.2), seed) for seed in range(WORLDS // 2)]
    assert equal.count("worse") <= MOST_WRONG
    assert worse.count("worse") >= WORLDS // 2 - MOST_WRONG


@pytest.mark.parametrize("decisions", [1, 5, 10])
def test_more_decisions_of_a_rollout_make_the_gate_no_surer(decisions: int) -> None:
    passed = [off_policy(-0.05, decisions, seed) == "passed" for seed in range(WORLDS)]
    assert sum(passed) <= MOST_WRONG
