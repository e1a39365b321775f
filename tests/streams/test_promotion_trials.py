"""What passes the gate goes on trial, and ends it promoted or rolled back."""

from pathlib import Path

import orjson
import pytest

from schemas.checkpoints import CheckpointState
from schemas.envelope import AnyEvent
from schemas.identifiers import new_event_id
from schemas.routes import RouteEvent
from schemas.serialization import decode
from schemas.topics import ROUTES
from streams.processors.promotion import Promotion
from streams.storage.artifacts import ArtifactStore
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from tests import events
from tests.streams.promotions import (
    AT_ONCE,
    BASE,
    ON_TRIAL,
    TARGET,
    adapter,
    candidate,
    controls,
    gate,
    held_out,
    later,
    policy,
    promoted,
    rewarded,
    side_by_side,
    weights,
)


def by_turns(count: int) -> list[AnyEvent]:
    """Return rollouts of two versions of which each earns 1 where the other earns 0."""
    return [
        event
        for number in range(count)
        for version, value in (("v1", number % 2), ("uniform", (number + 1) % 2))
        for event in rewarded(version, float(value), 1)
    ]


def test_on_trial_a_version_serves_its_share_until_it_is_surely_no_worse(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    begin = [*held_out(40), *later(), candidate(store, "v1", policy(0.9))]
    changes = promoted(log, store, *begin, *side_by_side(140, v1=0.9, uniform=0.5), config=ON_TRIAL)
    assert [state for _, state, _ in changes] == ["candidate", "evaluated", "canary", "promoted"]
    assert "surely no worse than uniform" in changes[-1][2]
    assert weights(log) == [{"uniform": 0.5, "v1": 0.5}, {"v1": 1.0}]
    assert controls(log) == [{}, {"uniform": 0.5}]


def test_a_trial_begins_on_a_likely_gain_and_a_promotion_without_trial_does_not(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    few = [*held_out(14), *later(), candidate(store, "v1", policy(0.9))]
    strict = {"tolerance": 0.0, "confidence": 0.9999}
    at_once, on_trial = (config.model_copy(update=strict) for config in (AT_ONCE, ON_TRIAL))
    assert [state for _, state, _ in promoted(log, store, *few, config=at_once)] == ["candidate"]
    changes = promoted(log, store, candidate(store, "v2", policy(0.95)), config=on_trial)
    assert [(version, state) for version, state, _ in changes][-1] == ("v2", "canary")


@pytest.mark.parametrize(("decisions", "spared"), [(1, True), (2, False)])
def test_held_out_rollouts_of_one_decision_spare_the_trial_the_proof_of_worth(
    log: EmbeddedLog, tmp_path: Path, decisions: int, spared: bool
) -> None:
    """On trial both earn the same by turns, which shows nothing within two hundred pairs."""
    store = ArtifactStore(tmp_path)
    held = [
        event.model_copy(
            update={
                "payload": event.payload.model_copy(
                    update={"decisions": event.payload.decisions * decisions}
                )
            }
        )
        for event in held_out(200)
    ]
    begin = [*held, *later(), candidate(store, "v1", policy(0.9))]
    changes = promoted(log, store, *begin, *by_turns(200), *later(), config=ON_TRIAL)
    assert changes[-1][1] == ("promoted" if spared else "canary")


@pytest.mark.parametrize(("more", "spared"), [(0, False), (180, True)])
def test_rollouts_held_out_during_a_trial_spare_it_the_proof_of_worth_too(
    log: EmbeddedLog, tmp_path: Path, more: int, spared: bool
) -> None:
    store = ArtifactStore(tmp_path)
    first, during = held_out(12), held_out(12 + more)[12:]
    begin = [*first, *later(), candidate(store, "v1", policy(0.51))]
    changes = promoted(log, store, *begin, *during, *by_turns(200), *later(), config=ON_TRIAL)
    assert changes[-1][1] == ("promoted" if spared else "canary")


def test_on_trial_a_worse_version_is_rolled_back_and_the_newest_that_waited_is_judged(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    trial = side_by_side(60, v1=0.2, uniform=0.8)
    waiting = [
        candidate(store, version, policy(0.9 + number / 100))
        for number, version in enumerate(["v2", "v3"])
    ]
    before = [*held_out(40), *later(), candidate(store, "v1", policy(0.9)), *waiting]
    changes = promoted(log, store, *before, *trial, config=ON_TRIAL)
    assert [(version, state) for version, state, _ in changes][3:] == [
        ("v2", "candidate"),
        ("v3", "candidate"),
        ("v2", "rejected"),
        ("v1", "rolled-back"),
        ("v3", "evaluated"),
        ("v3", "canary"),
    ]
    assert weights(log) == [
        {"uniform": 0.5, "v1": 0.5},
        {"uniform": 1.0},
        {"uniform": 0.5, "v3": 0.5},
    ]


def test_a_candidate_that_fails_more_often_is_not_promoted_whatever_it_earns_else(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    """It breaks a tool call where it would earn little (a reward hack that Cursor published)."""
    store = ArtifactStore(tmp_path)
    begin = [*held_out(40), *later(), candidate(store, "v1", policy(0.9))]
    trial: list[AnyEvent] = []
    for number in range(300):
        broke = number % 3 == 0
        trial += rewarded("v1", None if broke else 1.0, 1, state="failed" if broke else "succeeded")
        trial += rewarded("uniform", 0.0 if broke else 1.0, 1)
    changes = promoted(log, store, *begin, *trial, *later(), config=ON_TRIAL)
    assert changes[-1][1] == "rolled-back"
    assert "fails more often" in changes[-1][2]


def test_a_candidate_that_asks_instead_of_doing_is_not_promoted(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    """It ends without a result, so without a reward, where it would earn little (another one)."""
    store = ArtifactStore(tmp_path)
    config = ON_TRIAL.model_copy(update={"canary_pairs": 200})
    begin = [*held_out(40), *later(), candidate(store, "v1", policy(0.9))]
    trial: list[AnyEvent] = []
    for number in range(300):
        hard = number % 3 == 0
        trial += rewarded("v1", None if hard else 1.0, 1)
        trial += rewarded("uniform", 0.0 if hard else 1.0, 1)
    changes = promoted(log, store, *begin, *trial, *later(), config=config)
    assert changes[-1][1] == "rolled-back"
    assert "not sure are missing rewards" in changes[-1][2]


def test_what_came_before_the_trial_or_too_late_for_its_age_does_not_count(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    before = rewarded("uniform", 1.0, 50)
    begin = [*held_out(40), *before, *later(), candidate(store, "v1", policy(0.9))]
    late = [*rewarded("v1", 1.0, 1), *rewarded("uniform", 1.0, 1, after=9.0), *later()]
    promoted(log, store, *begin, *late, config=ON_TRIAL)
    arms = {arm.version: (arm.rollouts, arm.rewarded, arm.missing) for arm in gate(log).arms}
    assert arms == {"v1": (1, 1, 0), "uniform": (1, 0, 1)}


def test_a_rollout_counts_once_however_often_it_is_told(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    begin = [*held_out(40), *later(), candidate(store, "v1", policy(0.9))]
    both = [*rewarded("v1", 0.9, 4), *rewarded("uniform", 0.5, 4)]
    again = [event.model_copy(update={"event_id": new_event_id()}) for event in both * 15]
    promoted(log, store, *begin, *both, *again, *later(), *again, *later(), config=ON_TRIAL)
    assert gate(log).phase == "trial"
    assert [arm.rollouts for arm in gate(log).arms] == [4, 4]


def test_a_trial_goes_on_where_a_route_still_serves_both_versions(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    begin = [*held_out(40), *later(), candidate(store, "v1", policy(0.9))]
    promoted(log, store, *begin, config=ON_TRIAL)
    *_, last = read_all(log, ROUTES.name)
    again = decode(RouteEvent, last.value).model_copy(update={"event_id": new_event_id()})
    changes = promoted(log, store, again, *side_by_side(140, v1=0.9, uniform=0.5), config=ON_TRIAL)
    assert changes[-1][1] == "promoted"
    assert list(weights(log)[-1]) == ["v1"]


def test_a_trial_to_which_no_rollout_comes_ends(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    config = ON_TRIAL.model_copy(update={"canary_pairs": 20})
    begin = [*held_out(40), *later(), candidate(store, "v1", policy(0.9))]
    changes = promoted(log, store, *begin, *rewarded("uniform", 0.5, 25), config=config)
    assert changes[-1][1] == "rolled-back"
    assert "no rollout was ever assigned" in changes[-1][2]


def test_a_trial_gets_a_greater_share_when_nothing_speaks_against_the_version(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    careful = ON_TRIAL.model_copy(update={"canary_share": 0.25})
    begin: list[AnyEvent] = [RouteEvent(payload=BASE), adapter(store, "good")]
    trial = side_by_side(100, good=0.9, **{"configured:base": 0.5})
    promoted(log, store, *begin, *trial, config=careful)
    assert weights(log)[1:3] == [
        {"configured:base": 0.75, "good": 0.25},
        {"configured:base": 0.5, "good": 0.5},
    ]


def test_a_trial_keeps_its_share_while_the_version_does_worse(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    careful = ON_TRIAL.model_copy(update={"canary_share": 0.25})
    begin: list[AnyEvent] = [RouteEvent(payload=BASE), adapter(store, "bad")]
    trial = side_by_side(100, bad=0.4, **{"configured:base": 0.5})
    promoted(log, store, *begin, *trial, config=careful)
    assert weights(log)[1:] == [{"configured:base": 0.75, "bad": 0.25}]


def test_a_trial_that_an_earlier_release_began_is_ended(tmp_path: Path) -> None:
    """It paired rollouts otherwise, and its state has another form."""
    store = ArtifactStore(tmp_path)
    promotion, state = Promotion(ON_TRIAL, store), None
    begin: list[AnyEvent] = [RouteEvent(payload=BASE), adapter(store, "a1")]
    for offset, event in enumerate(begin):
        state = promotion.handle(state, event, events.record(event, offset, TARGET)).state
    assert state is not None
    document = orjson.loads(promotion.encode_state(state))
    del document["comparison"]["share"]
    (event,) = rewarded("a1", 0.9, 1)
    outcome = promotion.handle(
        promotion.decode_state(orjson.dumps(document)), event, events.record(event, 9, TARGET)
    )
    assert outcome.state is not None
    assert outcome.state.comparison is None
    assert outcome.state.checkpoints["a1"].state is CheckpointState.ROLLED_BACK
