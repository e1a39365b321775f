"""What a person serves comes before what the gate wants."""

from pathlib import Path

from schemas.checkpoints import CheckpointState
from schemas.envelope import AnyEvent
from schemas.routes import RouteEvent, RouteTarget
from schemas.serialization import decode
from schemas.topics import ROUTES
from streams.processors.promotion_state import baseline_route
from streams.storage.artifacts import ArtifactStore
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from tests.streams.promotions import (
    ON_TRIAL,
    TARGET,
    by_hand,
    candidate,
    held_out,
    later,
    policy,
    promoted,
    rewarded,
)


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


def test_a_waiting_candidate_that_a_person_serves_is_not_tried_beside_itself(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    mine = baseline_route(TARGET).model_copy(update={"targets": [RouteTarget(version="v1")]})
    waits: list[AnyEvent] = [*held_out(40), candidate(store, "v1", policy(0.1))]
    route = RouteEvent(payload=mine)
    changes = promoted(log, store, *waits, route, *later(), config=ON_TRIAL)
    assert changes[-1] == ("v1", "evaluated", "a person serves it")


def test_other_kinds_wait_for_a_person(log: EmbeddedLog, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    changes = promoted(log, store, *held_out(12), candidate(store, "m1", b"weights", kind="model"))
    assert [state for _, state, _ in changes] == ["candidate"]
