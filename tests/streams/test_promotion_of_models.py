"""Models and adapters go on trial where something serves them."""

from pathlib import Path

from schemas.checkpoints import CheckpointEvent, CheckpointState
from schemas.envelope import AnyEvent
from schemas.routes import RouteEvent, RouteTarget
from streams.storage.artifacts import ArtifactStore
from streams.storage.embedded.log import EmbeddedLog
from tests import events
from tests.streams.promotions import (
    BASE,
    MODEL,
    ON_TRIAL,
    adapter,
    behind,
    controls,
    given_up,
    models,
    promoted,
    side_by_side,
    weights,
)


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
        *side_by_side(116, **{"a1": 0.9, base: 0.5}),
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
    assert weights(log)[1] == {base: 0.5, "a1": 0.5}
    assert controls(log)[2] == {base: 0.5}


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
