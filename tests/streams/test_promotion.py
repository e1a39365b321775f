"""Candidates pass the gate on held-out decisions, or are rejected with a reason."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learners.bandit import MEDIA_TYPE, BanditPolicy
from learners.bandit.features import features
from learners.bandit.policy import Weights
from learners.bandit.regressor import BlockBayesianRegressor
from learners.gate import GateConfig
from schemas.checkpoints import Artifact, Checkpoint, CheckpointEvent, CheckpointState
from schemas.decisions import Candidate
from schemas.endpoints import Endpoint
from schemas.envelope import AnyEvent
from schemas.examples import ExampleEvent, RlExample, SftExample
from schemas.identifiers import new_event_id
from schemas.routes import Route, RouteEvent, RouteTarget
from schemas.serialization import decode
from schemas.topics import CHECKPOINTS, DEAD_LETTERS, ROUTES
from streams.processors.promotion import Promotion, baseline_route
from streams.runners.embedded.runner import EmbeddedRunner
from streams.storage.artifacts import ArtifactStore
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from tests import events

TARGET = "supervisor-policy"
GOOD, BAD = "the effect was significant", "nothing is known"
AT_ONCE = GateConfig(canary_share=0.0, tolerance=0.2)
ON_TRIAL = GateConfig(canary_share=0.25)


def policy(good_reward: float) -> bytes:
    """Return a policy that believes in the good text that much more than in the bad one."""
    regressor = BlockBayesianRegressor()
    good, bad = features("which is best?", [Candidate(text=GOOD), Candidate(text=BAD)])
    for _ in range(40):
        regressor.learn_one(good, good_reward).learn_one(bad, 1 - good_reward)
    return BanditPolicy(Weights.of(regressor), "squarecb", 200.0, 0.03).to_bytes()


def held_out(count: int) -> list[ExampleEvent]:
    """Return uniformly logged decisions on held-out tasks, where the good text earns 1 and the bad
    one 0.
    """
    return [
        events.example([GOOD, BAD], number % 2, float(number % 2 == 0), split="validation")
        for number in range(count)
    ]


def rewarded(version: str, value: float, count: int) -> list[ExampleEvent]:
    """Return training decisions of a version that all earned the same."""
    return [events.example([GOOD, BAD], 0, value, version=version) for _ in range(count)]


def alternating(*of: Sequence[AnyEvent]) -> list[AnyEvent]:
    return [event for together in zip(*of, strict=True) for event in together]


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
    """Run promotion over events; return version, state and reason of every change, in order."""
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
        candidate(store, "v1", policy(0.9)),
        candidate(store, "worse", policy(0.1)),
    )
    assert changes[-1][:2] == ("worse", "rejected")
    assert "lower bound" in changes[-1][2]
    assert served(log) == ["v1"]


def test_without_evidence_nothing_is_promoted(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    train_only = events.example([GOOD, BAD], 0, 1.0)
    changes = promoted(log, store, train_only, *held_out(3), candidate(store, "v1", policy(0.9)))
    assert changes[-1] == ("v1", "rejected", "3 held-out decisions, 12 needed")
    assert served(log) == []


def weights(log: EmbeddedLog) -> list[dict[str, float]]:
    """Return what was served, route by route, by version."""
    routes = [decode(RouteEvent, record.value).payload for record in read_all(log, ROUTES.name)]
    return [{target.version: target.weight for target in route.targets} for route in routes]


def test_on_trial_a_version_serves_its_share_until_it_is_surely_no_worse(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    trial = alternating(rewarded("uniform", 0.5, 60), rewarded("v1", 0.9, 60))
    changes = promoted(
        log, store, *held_out(40), candidate(store, "v1", policy(0.9)), *trial, config=ON_TRIAL
    )
    assert [state for _, state, _ in changes] == ["candidate", "evaluated", "canary", "promoted"]
    assert "surely no worse than uniform" in changes[-1][2]
    assert weights(log) == [{"uniform": 0.75, "v1": 0.25}, {"v1": 1.0}]


def test_on_trial_a_worse_version_is_rolled_back_and_the_newest_that_waited_is_judged(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    trial = alternating(rewarded("uniform", 0.8, 60), rewarded("v1", 0.2, 60))
    waiting = [
        candidate(store, version, policy(0.9 + number / 100))
        for number, version in enumerate(["v2", "v3"])
    ]
    before: list[AnyEvent] = [*held_out(40), candidate(store, "v1", policy(0.9)), *waiting]
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


def test_a_version_that_drops_after_its_promotion_is_taken_back(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    changes = promoted(
        log,
        store,
        *held_out(40),
        candidate(store, "v1", policy(0.9)),
        *rewarded("v1", 0.9, 100),
        candidate(store, "v2", policy(0.95)),
        *rewarded("v2", 0.1, 60),
    )
    assert [(version, state) for version, state, _ in changes][-3:] == [
        ("v2", "promoted"),
        ("v2", "rolled-back"),
        ("v1", "promoted"),
    ]
    assert "surely less than v1" in changes[-2][2]
    assert served(log) == ["v1", "v2", "v1"]


def test_a_person_who_takes_the_route_over_ends_the_trial(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    by_hand = RouteEvent(payload=baseline_route(TARGET).model_copy(update={"held": True}))
    before: list[AnyEvent] = [*held_out(40), candidate(store, "v1", policy(0.9))]
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
    changes = promoted(log, store, *held_out(40), *versions, by_hand, config=ON_TRIAL)
    assert [(version, state) for version, state, _ in changes][-2:] == [
        ("v1", "rolled-back"),
        ("v2", "evaluated"),
    ]
    assert "held by hand" in changes[-1][2]


def test_where_costs_matter_versions_are_compared_by_what_is_left(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    """The good text earns more and costs more than that is worth."""
    processor = Promotion(AT_ONCE, ArtifactStore(tmp_path), lambda example: example.reward * 0.5)
    example = held_out(1)[0]
    state = processor.handle(None, example, events.record(example, 0, TARGET)).state
    assert state is not None
    assert [item.reward for item in state.evidence.values()] == [0.5]
    assert [tally.mean for tally in state.tallies.values()] == [0.5]


def test_what_cannot_be_loaded_is_rejected(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    missing = candidate(store, "missing", b"")
    lost = Artifact(sha256="0" * 64, size=1, media_type=MEDIA_TYPE)
    missing = missing.model_copy(
        update={"payload": missing.payload.model_copy(update={"artifact": lost})}
    )
    changes = promoted(log, store, *held_out(12), candidate(store, "broken", b"{}"), missing)
    rejected = [(version, reason) for version, state, reason in changes if state == "rejected"]
    assert [version for version, _ in rejected] == ["broken", "missing"]
    assert all("cannot be served" in reason for _, reason in rejected)


MODEL = Endpoint(base_url="http://127.0.0.1:9/v1", model="base")
BASE = Route(
    name=TARGET, kind="model", targets=[RouteTarget(version="configured:base", endpoint=MODEL)]
)


def answered(version: str, value: float, count: int) -> list[ExampleEvent]:
    """Return examples of a model's answers that all earned the same."""
    body = RlExample(
        node="writer", prompt=[{"role": "user"}], response={"role": "assistant"}, checkpoint=version
    )
    example = events.example([GOOD], 0, value).payload.model_copy(update={"body": body})
    return [
        ExampleEvent(rollout_id=new_event_id(), time=events.START, payload=example)
        for _ in range(count)
    ]


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
    trial = alternating(answered("configured:base", 0.5, 60), answered("a1", 0.9, 60))
    changes = promoted(
        log,
        store,
        RouteEvent(payload=BASE),
        adapter(store, "a1"),
        *answered("configured:base", 0.8, 100),
        *trial,
        *answered("a1", 0.1, 60),
        config=ON_TRIAL,
    )
    assert [state for _, state, _ in changes] == [
        "candidate",
        "evaluated",
        "canary",
        "promoted",
        "rolled-back",
    ]
    assert "surely less than configured:base" in changes[-1][2]
    assert models(log)[1:] == [
        {"configured:base": "base", "a1": "a1"},
        {"a1": "a1"},
        {"configured:base": "base"},
    ]
    assert weights(log)[1] == {"configured:base": 0.75, "a1": 0.25}


def test_the_calls_of_one_rollout_are_one_piece_of_evidence(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    once = alternating(answered("configured:base", 0.5, 4), answered("a1", 0.9, 4))
    repeated = [event for event in once for _ in range(15)]
    changes = promoted(
        log, store, RouteEvent(payload=BASE), adapter(store, "a1"), *repeated, config=ON_TRIAL
    )
    assert [state for _, state, _ in changes] == ["candidate", "evaluated", "canary"], (
        "eight rollouts decide nothing"
    )


def test_a_reward_that_is_corrected_again_and_again_is_one_piece_of_evidence(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    corrected = [
        events.example([GOOD, BAD], 0, value, version=version, reward_revision=revision)
        for revision in range(1, 61)
        for version, value in (("uniform", 0.5), ("v1", 0.9))
    ]
    changes = promoted(
        log, store, *held_out(40), candidate(store, "v1", policy(0.9)), *corrected, config=ON_TRIAL
    )
    assert [state for _, state, _ in changes] == ["candidate", "evaluated", "canary"], (
        "one reward of each version decides nothing, however often it is corrected"
    )


def test_only_the_newest_held_out_decisions_are_kept_as_evidence(tmp_path: Path) -> None:
    promotion = Promotion(GateConfig(most_evidence=12), ArtifactStore(tmp_path))
    state = None
    decisions = held_out(40)
    for offset, event in enumerate(decisions):
        state = promotion.handle(state, event, events.record(event, offset, TARGET)).state
    assert state is not None
    newest = [event.payload.source_event_ids[-1] for event in decisions[-12:]]
    assert list(state.evidence) == newest


def test_conversations_count_for_a_model_that_has_no_samples(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)

    def talked(version: str, value: float) -> list[ExampleEvent]:
        messages = [
            {"role": "user", "content": "why?"},
            {"role": "assistant", "content": "because"},
        ]
        body = SftExample(node="writer", messages=messages, checkpoint=version)
        update = {"body": body}
        return [
            event.model_copy(update={"payload": event.payload.model_copy(update=update)})
            for event in answered(version, value, 60)
        ]

    trial = alternating(talked("configured:base", 0.5), talked("a1", 0.9))
    changes = promoted(
        log, store, RouteEvent(payload=BASE), adapter(store, "a1"), *trial, config=ON_TRIAL
    )
    assert changes[-1][1] == "promoted"


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
        trial = alternating(answered(champion, 0.5, 60), answered(version, 0.9, 60))
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
        trial = alternating(answered(champion, 0.5, 60), answered(version, 0.9, 60))
        promoted(log, store, *begin, adapter(store, version), *trial, config=ON_TRIAL)
    changes = promoted(log, store, given_up(adapter(store, "a2")), config=ON_TRIAL)
    assert changes[-1] == ("a1", "promoted", "served again: a2 its server died")
    assert list(models(log)[-1]) == ["a1"]


def test_other_kinds_wait_for_a_person(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    changes = promoted(log, store, *held_out(12), candidate(store, "m1", b"weights", kind="model"))
    assert [state for _, state, _ in changes] == ["candidate"]


def test_a_newer_reward_of_a_held_out_decision_replaces_the_older(tmp_path: Path) -> None:
    promotion = Promotion(GateConfig(), ArtifactStore(tmp_path))
    first = held_out(1)[0]
    better = first.model_copy(update={"payload": first.payload.model_copy(update={"reward": 0.25})})
    state = promotion.handle(None, first, events.record(first, 0, TARGET)).state
    state = promotion.handle(state, better, events.record(better, 1, TARGET)).state
    assert state is not None
    assert [item.reward for item in state.evidence.values()] == [0.25]
    assert promotion.decode_state(promotion.encode_state(state)) == state


def test_before_anything_is_learned_the_uniform_baseline_serves() -> None:
    assert [target.version for target in baseline_route(TARGET).targets] == ["uniform"]
