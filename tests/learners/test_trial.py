"""Versions that serve at the same time are compared: by worth, failures and missing rewards."""

from math import exp
from random import Random

import pytest

from learners.betting import Wager
from learners.drops import DropWatch, surely_above
from learners.gate import GateConfig
from learners.online_error import OnlineError
from learners.trial import (
    MOST_WAITING,
    Comparison,
    Pairing,
    Result,
    Tally,
    trial_verdict,
    watch_verdict,
)

CONFIG = GateConfig()


def comparison(tolerance: float = CONFIG.tolerance, level: float = 0.05) -> Comparison:
    return Comparison.of("new", "old", level, tolerance, 0.5, CONFIG)


def result(
    version: str, mean: float, random: Random, fails: float = 0.0, misses: float = 0.0
) -> Result:
    """Return a rollout of a version that earns 1 with probability `mean`, unless it fails."""
    if random.random() < fails:
        return Result(version, 0.0, failed=True)
    if random.random() < misses:
        return Result(version, None, failed=False)
    return Result(version, float(random.random() < mean), failed=False)


def tried(
    new: float,
    old: float,
    seed: int,
    count: int = 3000,
    share: float = 0.2,
    fails: float = 0.0,
    misses: float = 0.0,
) -> bool | None:
    """Feed a trial with rollouts until it has a verdict, `count` at most; return the verdict.

    Args:
        fails, misses: of the new version.
    """
    random, trial = Random(seed), comparison()
    for _ in range(count):
        if random.random() < share:
            trial.take(result("new", new, random, fails, misses))
        else:
            trial.take(result("old", old, random))
        decided = trial_verdict(trial, CONFIG)
        if decided is not None:
            return decided.passed
    return None


def test_a_trial_promotes_what_is_better_and_rolls_back_what_is_worse() -> None:
    assert tried(0.9, 0.5, seed=0) is True
    assert tried(0.4, 0.8, seed=1) is False


def test_a_trial_seldom_promotes_what_is_worse_however_long_it_runs() -> None:
    """Worse by exactly the tolerance, looked at after every rollout."""
    verdicts = [tried(0.58, 0.6, seed, count=1500) for seed in range(100)]
    assert sum(verdict is True for verdict in verdicts) <= 5


@pytest.mark.parametrize("way", ["fails", "misses"])
def test_what_fails_or_misses_more_is_not_promoted_though_the_rest_earns_more(way: str) -> None:
    fails, misses = (0.3, 0.0) if way == "fails" else (0.0, 0.3)
    verdicts = [tried(1.0, 0.6, seed, fails=fails, misses=misses) for seed in range(20)]
    assert True not in verdicts
    if way == "misses":
        assert False not in verdicts, "a missing reward decides nothing by itself"


def test_a_trial_that_does_not_convince_is_given_up() -> None:
    config = GateConfig(canary_pairs=3)
    trial = Comparison.of("new", "old", 0.05, config.tolerance, 0.5, config)
    for version in ("new", "old", "new", "new", "old", "old"):
        assert trial_verdict(trial, config) is None
        trial.take(Result(version, 0.5, failed=False))
    trial.take(Result("new", 0.5, failed=False))
    decided = trial_verdict(trial, config)
    assert decided is not None
    assert not decided.passed
    assert "did not convince within 3 pairs" in decided.reason
    assert "not sure are worth, failures, missing rewards" in decided.reason


def test_a_comparison_begins_with_the_first_rollout_of_the_new_version() -> None:
    trial = comparison()
    trial.see("old", 5.0)
    assert not trial.includes("old", 5.0)
    trial.see("new", 10.0)
    assert not trial.includes("old", 5.0)
    assert trial.includes("old", 10.0)
    assert trial.includes("new", 11.0)
    assert not trial.includes("another", 11.0)


def watched(new: float, old: float, seed: int, change: float = 0.0) -> bool | None:
    """Watch a version with a control of a twentieth, while the world changes for both half way."""
    random, watch = Random(seed), comparison(CONFIG.drop)
    for number in range(10_000):
        world = change if number > 4000 else 0.0
        is_old = random.random() < 0.05
        mean = (old if is_old else new) + world
        watch.take(result("old" if is_old else "new", mean, random))
        decided = watch_verdict(watch, CONFIG)
        if decided is not None:
            return decided.passed
    return None


def test_a_watch_takes_back_what_dropped_and_not_what_fell_with_the_world() -> None:
    assert [watched(0.4, 0.8, seed) for seed in range(5)] == [False] * 5
    assert False not in [watched(0.8, 0.8, seed, change=-0.3) for seed in range(10)]
    assert [watched(0.4, 0.7, seed, change=0.25) for seed in range(5)] == [False] * 5


def test_the_power_calculator_says_about_how_many_pairs_a_trial_takes() -> None:
    random, trial = Random(3), comparison()
    for number in range(400):
        trial.take(result("new" if number % 2 else "old", 0.8 if number % 2 else 0.6, random))
    needed = trial.worth.needed(0.05)
    assert needed is not None
    assert 20 < needed < 400


def test_the_stated_error_is_spent_over_all_tests_and_earned_back_by_discoveries() -> None:
    tests = OnlineError()
    levels = [tests.begin(0.05) for _ in range(100)]
    assert levels[0] == pytest.approx(0.025)
    assert sum(levels) < 0.05
    tests.win()
    assert tests.begin(0.05) == pytest.approx(2 * 0.05 / (101 * 102))


def test_a_drop_is_noticed_and_no_drop_is_not() -> None:
    random, before = Random(4), Tally()
    for _ in range(500):
        before.take(float(random.random() < 0.8))
    for mean, dropped in ((0.8, False), (0.4, True)):
        watch = DropWatch.of(before, 0.05, 0.05)
        assert watch is not None
        assert any(watch.dropped(float(random.random() < mean)) for _ in range(300)) is dropped


def test_what_there_was_before_is_taken_at_its_lower_bound_by_hoeffding() -> None:
    """Of 200 rewards and an error of e^-4, the bound lies sqrt(4 / 400) below their mean."""
    before = Tally(count=200, total=160.0)
    assert surely_above(before, exp(-4)) == pytest.approx(0.7)
    watch = DropWatch.of(before, drop=0.1, error=2 * exp(-4))
    assert watch is not None
    assert -watch.drop.mean == pytest.approx(0.6), "half of the error is spent on the bound"


def test_a_drop_where_there_is_none_is_told_at_most_as_often_as_half_the_error() -> None:
    """The other half is that of the bound. The rewards are of just the mean that is no drop."""

    def dropped(seed: int) -> bool:
        random = Random(seed)
        watch = DropWatch(error=0.4, drop=Wager(mean=-0.5, least=-1.0))
        return any(watch.dropped(float(random.random() < 0.5)) for _ in range(200))

    assert sum(dropped(seed) for seed in range(200)) <= 40


def test_a_drop_by_half_shows_within_forty_rewards() -> None:
    watch = DropWatch.of(Tally(count=500, total=400.0), 0.05, 0.05)
    assert watch is not None
    assert any(watch.dropped(float(number % 5 < 2)) for number in range(40))


def test_where_little_is_known_of_what_was_there_before_nothing_is_watched() -> None:
    assert DropWatch.of(Tally(count=1, total=1.0), 0.05, 0.05) is None
    assert DropWatch.of(Tally(), 0.0, 0.05) is None


def test_a_pair_has_as_many_of_each_version_as_their_shares_say() -> None:
    pairing = Pairing.of(0.25)
    assert [pairing.take(False, value) for value in (0.1, 0.2, 0.3)] == [None] * 3
    assert pairing.take(True, 0.5) == pytest.approx(0.3)
    pairing.expect(0.5)
    assert pairing.take(True, 0.9) is None
    assert pairing.take(False, 0.4) == pytest.approx(0.5)


def test_values_wait_for_those_of_the_other_version_and_the_oldest_fall_out() -> None:
    pairing = Pairing.of(0.5)
    for number in range(2 * MOST_WAITING):
        assert pairing.take(False, number / 1000) is None
    assert pairing.take(True, 0.0) == pytest.approx(-MOST_WAITING / 1000)


def test_pairs_are_made_where_the_shares_are_others_than_was_thought() -> None:
    pairing = Pairing.of(0.9)
    made = [pairing.take(new, float(new)) for _ in range(200) for new in (True, False)]
    assert made.count(1.0) > 100
