"""The evidence of one name: what is kept of its rollouts, and when they count."""

from datetime import timedelta
from pathlib import Path

import pytest

from learners.gate import GateConfig
from learners.trial import Comparison
from schemas.outcomes import OutcomeEvent
from schemas.rollouts import RolloutState
from streams.processors.evidence import MARGIN, MOST_YOUNG, Evidence, dated, failed, worth_of
from streams.processors.gate_status import status_of
from streams.processors.promotion import Promotion
from streams.processors.promotion_state import PromotionState
from streams.storage.artifacts import ArtifactStore
from tests import events
from tests.streams.promotions import AT_ONCE, TARGET, held_out, rewarded


@pytest.mark.parametrize("fault", ["limit", "caller"])
def test_what_is_no_fault_of_a_version_is_no_failure_of_it(fault: str, tmp_path: Path) -> None:
    (event,) = rewarded("v1", None, 1, state="failed", fault=fault)
    assert isinstance(event, OutcomeEvent)
    assert not failed(event.payload)
    assert worth_of(event.payload, lambda outcome: 1.0, GateConfig()) is None


def test_where_costs_matter_versions_are_compared_by_what_is_left(tmp_path: Path) -> None:
    processor = Promotion(AT_ONCE, ArtifactStore(tmp_path), lambda o: (o.reward or 0.0) * 0.5)
    (event,) = held_out(1)
    state = processor.handle(None, event, events.record(event, 0, TARGET)).state
    assert state is not None
    assert [item.worth for item in state.evidence.held_out.values()] == [0.5]


def test_only_the_newest_held_out_rollouts_are_kept_as_evidence(tmp_path: Path) -> None:
    promotion = Promotion(GateConfig(most_evidence=12), ArtifactStore(tmp_path))
    state = None
    for offset, event in enumerate(held_out(40)):
        state = promotion.handle(state, event, events.record(event, offset, TARGET)).state
    assert state is not None
    assert len(state.evidence.held_out) == 12
    assert list(state.evidence.held_out)[-1].endswith("held-out-39")


def test_of_more_rollouts_than_can_be_followed_a_share_is_chosen_by_name() -> None:
    evidence, config = Evidence(maturity=10**6), GateConfig()
    for event in rewarded("v1", 1.0, MOST_YOUNG + 500):
        assert isinstance(event, OutcomeEvent)
        evidence.follow(event, lambda outcome: 1.0, config)
    assert evidence.thinning == 1
    assert MOST_YOUNG / 3 < len(evidence.young) < MOST_YOUNG
    evidence.beginnings = [0.0, 3600.0]
    assert (evidence.per_hour, evidence.followed_per_hour) == (1.0, 0.5)


def test_the_age_at_which_rollouts_count_is_learned_from_the_delays_of_rewards() -> None:
    evidence, config = Evidence(), GateConfig()
    for delay in [2.0] * 19 + [100.0]:
        (event,) = rewarded("v1", 1.0, 1, after=delay)
        assert isinstance(event, OutcomeEvent)
        evidence.take(event, lambda outcome: 1.0, config)
    evidence.learn_maturity(config)
    assert evidence.maturity == 2.0 * MARGIN
    evidence.learn_maturity(GateConfig(maturity=timedelta(hours=1)))
    assert evidence.maturity == 3600.0


def test_an_outcome_from_the_future_ends_no_trials(tmp_path: Path) -> None:
    (event,) = rewarded("v1", 1.0, 1)
    assert isinstance(event, OutcomeEvent)
    skewed = dated(event, events.START)
    assert skewed.time == skewed.payload.begun == skewed.payload.rewarded == events.START
    assert dated(event, event.time) is event


def test_a_newer_reward_of_a_held_out_rollout_replaces_the_older(tmp_path: Path) -> None:
    promotion = Promotion(GateConfig(), ArtifactStore(tmp_path))
    (first,) = held_out(1)
    better = first.model_copy(update={"payload": first.payload.model_copy(update={"reward": 0.25})})
    state = promotion.handle(None, first, events.record(first, 0, TARGET)).state
    state = promotion.handle(state, better, events.record(better, 1, TARGET)).state
    assert state is not None
    assert [item.worth for item in state.evidence.held_out.values()] == [0.25]
    assert promotion.decode_state(promotion.encode_state(state)) == state


def test_rollouts_of_a_gateway_whose_clock_is_behind_do_not_count_and_the_status_says_so() -> None:
    evidence, config = Evidence(maturity=1.0), GateConfig()

    def hear(rollout_id: str, begun: float, state: RolloutState) -> None:
        event = events.outcome(rollout_id, "v2", None, begun=begun, after=0.0, state=state)
        evidence.take(event, lambda outcome: 1.0, config)
        evidence.follow(event, lambda outcome: 1.0, config)

    for number in range(20):
        hear(f"on-time-{number}", float(number), RolloutState.STARTED)
    counted = len(evidence.matured())
    assert counted > 0
    hear("on-time-0", 0.0, RolloutState.SUCCEEDED)
    assert evidence.late == 0, "it was counted before it ended"
    hear("behind", -30.0, RolloutState.STARTED)
    hear("behind", -30.0, RolloutState.SUCCEEDED)
    assert (evidence.late, evidence.matured()) == (1, [])
    trial = Comparison.of("v2", "v1", level=0.05, tolerance=0.02, share=0.5, config=config)
    state = PromotionState(evidence=evidence, comparison=trial)
    status, _ = status_of("supervisor-policy", state, config)
    assert "too long after they began: 1 (the clock of a gateway is behind" in status.text
    evidence.learn_maturity(config)
    assert evidence.late == 0
