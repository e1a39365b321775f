"""Candidates pass the gate on held-out rollouts, go on trial, and are watched."""

import itertools
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from learners.bandit import MEDIA_TYPE, BanditPolicy
from learners.bandit.features import features
from learners.bandit.policy import Weights
from learners.bandit.regressor import BlockBayesianRegressor
from learners.gate import GateConfig
from schemas.checkpoints import Artifact, Checkpoint, CheckpointEvent, CheckpointState
from schemas.decisions import Candidate
from schemas.endpoints import Endpoint
from schemas.envelope import AnyEvent
from schemas.gates import GateEvent, GateStatus
from schemas.identifiers import new_event_id
from schemas.outcomes import OutcomeEvent
from schemas.routes import Route, RouteEvent, RouteTarget
from schemas.serialization import decode
from schemas.topics import CHECKPOINTS, DEAD_LETTERS, GATES, ROUTES
from streams.processors.evidence import MOST_YOUNG, Evidence, dated, failed, worth_of
from streams.processors.promotion import Promotion
from streams.processors.promotion_state import baseline_route
from streams.runners.embedded.runner import EmbeddedRunner
from streams.storage.artifacts import ArtifactStore
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from tests import events

TARGET = "supervisor-policy"
GOOD, BAD = "the effect was significant", "nothing is known"
A_SECOND = timedelta(seconds=1)
AT_ONCE = GateConfig(canary_share=0.0, tolerance=0.2, maturity=A_SECOND)
ON_TRIAL = GateConfig(canary_share=0.25, baseline_share=0.25, maturity=A_SECOND)
CLOCK = itertools.count(1)
"""Seconds of the test's world. Everything that a test makes is later than what it made before."""


def policy(good_reward: float) -> bytes:
    """Return a policy that believes in the good text that much more than in the bad one."""
    regressor = BlockBayesianRegressor()
    good, bad = features("which is best?", [Candidate(text=GOOD), Candidate(text=BAD)])
    for _ in range(40):
        regressor.learn_one(good, good_reward).learn_one(bad, 1 - good_reward)
    return BanditPolicy(Weights.of(regressor), "squarecb", 200.0, 0.03).to_bytes()


def held_out(count: int) -> list[OutcomeEvent]:
    """Return held-out rollouts with a uniform decision, where the good text earns 1 and the bad one
    0.
    """
    return [
        events.outcome(
            f"held-out-{number}",
            "uniform",
            float(number % 2 == 0),
            begun=next(CLOCK),
            split="validation",
            decisions=[events.decision_of([GOOD, BAD], number % 2)],
        )
        for number in range(count)
    ]


def rewarded(version: str, value: float | None, count: int, **more: Any) -> list[AnyEvent]:
    """Return rollouts of a version that all earned the same."""
    return [
        events.outcome(new_event_id(), version, value, begun=next(CLOCK), **more)
        for _ in range(count)
    ]


def later(seconds: float = 60.0) -> list[AnyEvent]:
    """Return a rollout of another version, so late that all before it are old enough."""
    for _ in range(int(seconds)):
        next(CLOCK)
    return rewarded("another", 0.5, 1)


def side_by_side(count: int, **of: float | None) -> list[AnyEvent]:
    """Return rollouts of versions that serve at the same time, and time enough for all to count."""
    both = [
        event
        for _ in range(count)
        for version, value in of.items()
        for event in rewarded(version, value, 1)
    ]
    return [*both, *later()]


def candidate(
    store: ArtifactStore, version: str, content: bytes, kind: Any = "policy"
) -> CheckpointEvent:
    artifact = store.put(content, MEDIA_TYPE)
    payload = Checkpoint(
        name=TARGET, version=version, kind=kind, state=CheckpointState.CANDIDATE, artifact=artifact
    )
    return CheckpointEvent(time=events.START, payload=payload)


def promoted(
    log: EmbeddedLog, store: ArtifactStore, *sequence: AnyEvent, config: GateConfig = AT_ONCE
) -> list[tuple[str, str, str]]:
    """Run promotion over events; return version, state and reason of every change so far."""
    for event in sequence:
        log.append([events.new_record(event, TARGET)])
        runner = EmbeddedRunner(log, Promotion(config, store), "t")
        while runner.run_once():
            pass
        runner.close()
    changes = [
        decode(CheckpointEvent, record.value).payload for record in read_all(log, CHECKPOINTS.name)
    ]
    assert not list(read_all(log, DEAD_LETTERS.name))
    return [(change.version, str(change.state), change.reason) for change in changes]


def gate(log: EmbeddedLog) -> GateStatus:
    """Return what the gate told last."""
    *_, last = read_all(log, GATES.name)
    return decode(GateEvent, last.value).payload


def served(log: EmbeddedLog) -> list[str]:
    routes = [decode(ROUTES.event, record.value).payload for record in read_all(log, ROUTES.name)]
    return [route.targets[0].version for route in routes]


def test_a_better_policy_is_promoted_and_its_successor_retires_it(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    changes = promoted(
        log,
        store,
        *held_out(40),
        *later(),
        candidate(store, "v1", policy(0.9)),
        candidate(store, "v2", policy(0.95)),
    )
    assert [(version, state) for version, state, _ in changes] == [
        ("v1", "candidate"),
        ("v1", "evaluated"),
        ("v1", "promoted"),
        ("v2", "candidate"),
        ("v2", "evaluated"),
        ("v1", "retired"),
        ("v2", "promoted"),
    ]
    assert served(log) == ["v1", "v2"]


def test_a_worse_policy_is_rejected_with_the_numbers(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    changes = promoted(
        log,
        store,
        *held_out(40),
        *later(),
        candidate(store, "v1", policy(0.9)),
        candidate(store, "worse", policy(0.1)),
        candidate(store, "v2", policy(0.95)),
    )
    assert [(version, state) for version, state, _ in changes][3:6] == [
        ("worse", "candidate"),
        ("v2", "candidate"),
        ("worse", "rejected"),
    ]
    assert "superseded by v2" in changes[5][2]
    assert "lower bound" in changes[5][2]
    assert served(log) == ["v1", "v2"]


def test_a_candidate_waits_until_there_is_evidence_enough(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    train_only = rewarded("uniform", 1.0, 40)
    first = [*train_only, *held_out(3), *later(), candidate(store, "v1", policy(0.9))]
    assert promoted(log, store, *first) == [("v1", "candidate", "")]
    assert gate(log).text.startswith("v1 waits: 3 held-out rollouts with a reward, 12 needed")
    changes = promoted(log, store, *held_out(40), *later())
    assert [state for _, state, _ in changes] == ["candidate", "evaluated", "promoted"]


def test_ten_decisions_of_a_rollout_are_one_piece_of_evidence(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    repeated = [
        event.model_copy(
            update={
                "payload": event.payload.model_copy(
                    update={"decisions": event.payload.decisions * 10}
                )
            }
        )
        for event in held_out(4)
    ]
    promoted(log, store, *repeated, *later(), candidate(store, "v1", policy(0.9)))
    assert gate(log).evidence == 4


def weights(log: EmbeddedLog) -> list[dict[str, float]]:
    """Return what was served, route by route, by version."""
    routes = [decode(RouteEvent, record.value).payload for record in read_all(log, ROUTES.name)]
    return [{target.version: target.weight for target in route.targets} for route in routes]


def controls(log: EmbeddedLog) -> list[dict[str, float]]:
    """Return what kept a share beside what was promoted, route by route."""
    routes = [decode(RouteEvent, record.value).payload for record in read_all(log, ROUTES.name)]
    return [{r.control.version: r.control.weight} if r.control else {} for r in routes]


def test_on_trial_a_version_serves_its_share_until_it_is_surely_no_worse(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    begin = [*held_out(40), *later(), candidate(store, "v1", policy(0.9))]
    changes = promoted(log, store, *begin, *side_by_side(140, v1=0.9, uniform=0.5), config=ON_TRIAL)
    assert [state for _, state, _ in changes] == ["candidate", "evaluated", "canary", "promoted"]
    assert "surely no worse than uniform" in changes[-1][2]
    assert weights(log) == [{"uniform": 0.75, "v1": 0.25}, {"v1": 1.0}]
    assert controls(log) == [{}, {"uniform": 0.05}]


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
    trial = [
        event
        for number in range(200)
        for version, value in (("v1", number % 2), ("uniform", (number + 1) % 2))
        for event in rewarded(version, float(value), 1)
    ]
    changes = promoted(log, store, *begin, *trial, *later(), config=ON_TRIAL)
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
        {"uniform": 0.75, "v1": 0.25},
        {"uniform": 1.0},
        {"uniform": 0.75, "v3": 0.25},
    ]


def test_a_version_that_earns_less_than_what_it_replaced_is_taken_back(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    begin = [*held_out(40), *later(), candidate(store, "v1", policy(0.9))]
    second = candidate(store, "v2", policy(0.95))
    changes = promoted(log, store, *begin, second, *side_by_side(60, v2=0.1, v1=0.9))
    assert [(version, state) for version, state, _ in changes][-3:] == [
        ("v2", "promoted"),
        ("v2", "rolled-back"),
        ("v1", "promoted"),
    ]
    assert "it earns less than v1, surely" in changes[-2][2]
    assert served(log) == ["v1", "v2", "v1"]


def test_a_world_that_falls_for_both_takes_nothing_back(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    begin = [*held_out(40), *later(), candidate(store, "v1", policy(0.9))]
    worlds = [*side_by_side(20, v1=0.9, uniform=0.8), *side_by_side(200, v1=0.2, uniform=0.1)]
    changes = promoted(log, store, *begin, *worlds)
    assert changes[-1][1] == "promoted"
    assert controls(log) == [{"uniform": 0.05}, {}], "the control ends with the watch"


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


@pytest.mark.parametrize("fault", ["limit", "caller"])
def test_what_is_no_fault_of_a_version_is_no_failure_of_it(fault: str, tmp_path: Path) -> None:
    (event,) = rewarded("v1", None, 1, state="failed", fault=fault)
    assert isinstance(event, OutcomeEvent)
    assert not failed(event.payload)
    assert worth_of(event.payload, lambda outcome: 1.0, GateConfig()) is None


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


def test_a_person_who_takes_the_route_over_ends_the_trial(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    by_hand = RouteEvent(payload=baseline_route(TARGET).model_copy(update={"held": True}))
    before = [*held_out(40), *later(), candidate(store, "v1", policy(0.9))]
    changes = promoted(log, store, *before, by_hand, *rewarded("v1", 0.0, 60), config=ON_TRIAL)
    assert changes[-1] == ("v1", "rolled-back", "a person took over the route")


def test_a_person_who_takes_the_route_over_leaves_nobody_waiting(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    by_hand = RouteEvent(payload=baseline_route(TARGET).model_copy(update={"held": True}))
    versions = [
        candidate(store, version, policy(reward)) for version, reward in (("v1", 0.9), ("v2", 0.95))
    ]
    begin = [*held_out(40), *later()]
    changes = promoted(log, store, *begin, *versions, by_hand, config=ON_TRIAL)
    assert [(version, state) for version, state, _ in changes][-2:] == [
        ("v1", "rolled-back"),
        ("v2", "evaluated"),
    ]
    assert "held by hand" in changes[-1][2]


def test_where_costs_matter_versions_are_compared_by_what_is_left(tmp_path: Path) -> None:
    processor = Promotion(AT_ONCE, ArtifactStore(tmp_path), lambda o: (o.reward or 0.0) * 0.5)
    (event,) = held_out(1)
    state = processor.handle(None, event, events.record(event, 0, TARGET)).state
    assert state is not None
    assert [item.worth for item in state.evidence.held_out.values()] == [0.5]


def test_what_cannot_be_loaded_is_rejected(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    missing = candidate(store, "missing", b"")
    lost = Artifact(sha256="0" * 64, size=1, media_type=MEDIA_TYPE)
    missing = missing.model_copy(
        update={"payload": missing.payload.model_copy(update={"artifact": lost})}
    )
    changes = promoted(log, store, candidate(store, "broken", b"{}"), missing)
    rejected = [(version, reason) for version, state, reason in changes if state == "rejected"]
    assert [version for version, _ in rejected] == ["broken", "missing"]
    assert all("cannot be served" in reason for _, reason in rejected)


MODEL = Endpoint(base_url="http://127.0.0.1:9/v1", model="base")
BASE = Route(
    name=TARGET, kind="model", targets=[RouteTarget(version="configured:base", endpoint=MODEL)]
)


def adapter(store: ArtifactStore, version: str) -> CheckpointEvent:
    """Return an adapter that a server has loaded."""
    event = candidate(store, version, version.encode(), kind="adapter")
    tuned = MODEL.model_copy(update={"model": version})
    return event.model_copy(
        update={"payload": event.payload.model_copy(update={"endpoint": tuned})}
    )


def models(log: EmbeddedLog) -> list[dict[str, str]]:
    """Return what was served, route by route: version to the server's model."""
    routes = [decode(RouteEvent, record.value).payload for record in read_all(log, ROUTES.name)]
    return [{t.version: t.endpoint.model for t in route.targets if t.endpoint} for route in routes]


def test_a_model_that_is_served_goes_on_trial_and_is_promoted_watched_and_taken_back(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    base = "configured:base"
    changes = promoted(
        log,
        store,
        RouteEvent(payload=BASE),
        adapter(store, "a1"),
        *side_by_side(140, **{"a1": 0.9, base: 0.5}),
        *side_by_side(60, **{"a1": 0.1, base: 0.5}),
        config=ON_TRIAL,
    )
    assert [state for _, state, _ in changes] == [
        "candidate",
        "evaluated",
        "canary",
        "promoted",
        "rolled-back",
    ]
    assert "it earns less than configured:base, surely" in changes[-1][2]
    assert models(log)[1:] == [
        {base: "base", "a1": "a1"},
        {"a1": "a1"},
        {base: "base"},
    ]
    assert weights(log)[1] == {base: 0.75, "a1": 0.25}
    assert controls(log)[2] == {base: 0.05}


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


def test_the_age_at_which_rollouts_count_is_learned_from_the_delays_of_rewards() -> None:
    evidence, config = Evidence(), GateConfig()
    for delay in [2.0] * 19 + [100.0]:
        (event,) = rewarded("v1", 1.0, 1, after=delay)
        assert isinstance(event, OutcomeEvent)
        evidence.take(event, lambda outcome: 1.0, config)
    evidence.learn_maturity(config)
    assert evidence.maturity == 2.0
    evidence.learn_maturity(GateConfig(maturity=timedelta(hours=1)))
    assert evidence.maturity == 3600.0


def given_up(event: CheckpointEvent) -> CheckpointEvent:
    """Return what whoever serves a checkpoint says when it cannot any more."""
    change = {"state": CheckpointState.ROLLED_BACK, "reason": "its server died"}
    return CheckpointEvent(time=events.START, payload=event.payload.model_copy(update=change))


def behind(log: EmbeddedLog) -> list[list[str]]:
    """Return what answered where the targets did not, route by route."""
    routes = [decode(RouteEvent, record.value).payload for record in read_all(log, ROUTES.name)]
    return [[target.version for target in route.fallbacks] for route in routes]


def test_what_a_model_replaces_answers_where_it_does_not(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    other = RouteTarget(version="configured:other", endpoint=MODEL)
    for champion, version in (("configured:base", "a1"), ("a1", "a2")):
        begin = (
            [RouteEvent(payload=BASE.model_copy(update={"fallbacks": [other]}))]
            if version == "a1"
            else []
        )
        trial = side_by_side(200, **{version: 0.9, champion: 0.5})
        promoted(log, store, *begin, adapter(store, version), *trial, config=ON_TRIAL)
    assert behind(log) == [
        ["configured:other"],
        ["configured:base", "configured:other"],
        ["configured:base", "configured:other"],
        ["a1", "configured:base", "configured:other"],
        ["a1", "configured:base", "configured:other"],
    ]


def test_a_model_that_cannot_be_served_any_more_leaves_its_trial(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    begin: list[AnyEvent] = [
        RouteEvent(payload=BASE),
        adapter(store, "a1"),
        given_up(adapter(store, "a1")),
        adapter(store, "a2"),
    ]
    changes = promoted(log, store, *begin, config=ON_TRIAL)
    assert [(version, state) for version, state, _ in changes][-3:] == [
        ("a2", "candidate"),
        ("a2", "evaluated"),
        ("a2", "canary"),
    ]
    assert [list(route) for route in models(log)[1:]] == [
        ["configured:base", "a1"],
        ["configured:base"],
        ["configured:base", "a2"],
    ]


def test_a_model_that_was_given_up_while_it_waited_is_not_tried(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    waits = adapter(store, "a2")
    refused = {"state": CheckpointState.REJECTED, "reason": "its server died"}
    gone = CheckpointEvent(time=events.START, payload=waits.payload.model_copy(update=refused))
    begin: list[AnyEvent] = [
        RouteEvent(payload=BASE),
        adapter(store, "a1"),
        waits,
        gone,
        given_up(adapter(store, "a1")),
    ]
    changes = promoted(log, store, *begin, config=ON_TRIAL)
    assert [state for version, state, _ in changes if version == "a2"] == ["candidate", "rejected"]
    assert list(models(log)[-1]) == ["configured:base"]


def test_where_a_promoted_model_cannot_be_served_any_more_its_parent_is(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    for champion, version in (("configured:base", "a1"), ("a1", "a2")):
        begin = [RouteEvent(payload=BASE)] if version == "a1" else []
        trial = side_by_side(200, **{version: 0.9, champion: 0.5})
        promoted(log, store, *begin, adapter(store, version), *trial, config=ON_TRIAL)
    changes = promoted(log, store, given_up(adapter(store, "a2")), config=ON_TRIAL)
    assert changes[-1] == ("a1", "promoted", "served again: a2 its server died")
    assert list(models(log)[-1]) == ["a1"]


def by_hand(store: ArtifactStore, version: str, state: CheckpointState) -> CheckpointEvent:
    """Return what a person makes of a policy's checkpoint."""
    event = candidate(store, version, policy(0.9))
    said = {"state": state, "reason": "a person", "by_hand": True}
    return event.model_copy(update={"payload": event.payload.model_copy(update=said)})


def test_a_waiting_candidate_that_a_person_promotes_blocks_no_later_one(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    changes = promoted(
        log,
        store,
        candidate(store, "v1", policy(0.9)),
        by_hand(store, "v1", CheckpointState.EVALUATED),
        by_hand(store, "v1", CheckpointState.PROMOTED),
        candidate(store, "v2", policy(0.95)),
        candidate(store, "v3", policy(0.96)),
    )
    assert [(version, state) for version, state, _ in changes][3:] == [
        ("v2", "candidate"),
        ("v3", "candidate"),
        ("v2", "rejected"),
    ]


def test_what_a_person_serves_during_a_trial_is_not_overwritten(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    """The checkpoints that a person changes come before the route that the person wants."""
    store = ArtifactStore(tmp_path)
    begin = [*held_out(40), *later(), candidate(store, "v1", policy(0.9))]
    back = by_hand(store, "v1", CheckpointState.ROLLED_BACK)
    held = RouteEvent(payload=baseline_route(TARGET).model_copy(update={"held": True}))
    promoted(log, store, *begin, back, held, config=ON_TRIAL)
    routes = [decode(RouteEvent, record.value).payload for record in read_all(log, ROUTES.name)]
    assert routes[-1].held
    assert [target.version for target in routes[-1].targets] == ["uniform"]


def test_a_trial_beside_a_model_whose_server_goes_ends(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    first: list[AnyEvent] = [RouteEvent(payload=BASE), adapter(store, "a1")]
    promoted(
        log,
        store,
        *first,
        *side_by_side(200, **{"a1": 0.9, "configured:base": 0.5}),
        config=ON_TRIAL,
    )
    tried: list[AnyEvent] = [adapter(store, "a2"), given_up(adapter(store, "a1"))]
    changes = promoted(log, store, *tried, adapter(store, "a3"), config=ON_TRIAL)
    assert [(version, state) for version, state, _ in changes if version in ("a2", "a3")] == [
        ("a2", "candidate"),
        ("a2", "evaluated"),
        ("a2", "canary"),
        ("a2", "rolled-back"),
        ("a3", "candidate"),
        ("a3", "evaluated"),
        ("a3", "canary"),
    ]
    assert list(models(log)[-1]) == ["configured:base", "a3"]


def test_an_outcome_from_the_future_ends_no_trials(tmp_path: Path) -> None:
    (event,) = rewarded("v1", 1.0, 1)
    assert isinstance(event, OutcomeEvent)
    skewed = dated(event, events.START)
    assert skewed.time == skewed.payload.begun == skewed.payload.rewarded == events.START
    assert dated(event, event.time) is event


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


def test_a_waiting_candidate_that_a_person_serves_is_not_tried_beside_itself(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    mine = baseline_route(TARGET).model_copy(update={"targets": [RouteTarget(version="v1")]})
    waits: list[AnyEvent] = [*held_out(40), candidate(store, "v1", policy(0.1))]
    route = RouteEvent(payload=mine)
    changes = promoted(log, store, *waits, route, *later(), config=ON_TRIAL)
    assert changes[-1] == ("v1", "evaluated", "a person serves it")


def test_a_trial_to_which_no_rollout_comes_ends(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    config = ON_TRIAL.model_copy(update={"canary_pairs": 20})
    begin = [*held_out(40), *later(), candidate(store, "v1", policy(0.9))]
    changes = promoted(log, store, *begin, *rewarded("uniform", 0.5, 25), config=config)
    assert changes[-1][1] == "rolled-back"
    assert "no rollout was ever assigned" in changes[-1][2]


def test_other_kinds_wait_for_a_person(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    changes = promoted(log, store, *held_out(12), candidate(store, "m1", b"weights", kind="model"))
    assert [state for _, state, _ in changes] == ["candidate"]


def test_a_newer_reward_of_a_held_out_rollout_replaces_the_older(tmp_path: Path) -> None:
    promotion = Promotion(GateConfig(), ArtifactStore(tmp_path))
    (first,) = held_out(1)
    better = first.model_copy(update={"payload": first.payload.model_copy(update={"reward": 0.25})})
    state = promotion.handle(None, first, events.record(first, 0, TARGET)).state
    state = promotion.handle(state, better, events.record(better, 1, TARGET)).state
    assert state is not None
    assert [item.worth for item in state.evidence.held_out.values()] == [0.25]
    assert promotion.decode_state(promotion.encode_state(state)) == state


def test_before_anything_is_learned_the_uniform_baseline_serves() -> None:
    assert [target.version for target in baseline_route(TARGET).targets] == ["uniform"]
