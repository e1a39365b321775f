"""What is served is changed by hand, over HTTP or at the command line, and the audit trail says by
whom and why.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.config.settings import Settings
from infra.control.audit import ControlError
from infra.control.routes import (
    canary,
    drain,
    promote,
    release,
    roll_back,
    routes_on,
    set_route,
)
from infra.installation.routes import publish_initial_routes
from learners.gate import GateConfig
from learners.registry import Registry
from schemas.audit import Audit, AuditEvent
from schemas.checkpoints import Artifact, Checkpoint, CheckpointEvent, CheckpointState
from schemas.routes import Route, RouteEvent, RouteTarget
from schemas.topics import AUDIT, CHECKPOINTS, ROUTES
from streams.processors.promotion import Promotion
from streams.processors.promotion_state import PromotionState, baseline_route
from streams.storage.artifacts import ArtifactStore
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import Log, read_all
from streams.storage.records import NewRecord, Outgoing
from tests import events
from tests.infra.conftest import Gateway, model_route, publish
from tests.streams.promotions import candidate, held_out, policy, promoted
from tests.waiting import eventually

NAME = "supervisor-policy"
ARTIFACT = Artifact(sha256="a" * 64, size=1, media_type="application/vnd.everloop.bandit+json")


def announce(log: Log, version: str, *states: CheckpointState) -> None:
    for state in (CheckpointState.CANDIDATE, *states):
        checkpoint = Checkpoint(
            name=NAME, version=version, kind="policy", state=state, artifact=ARTIFACT
        )
        log.append([Outgoing.of(CHECKPOINTS, NAME, CheckpointEvent(payload=checkpoint)).record()])


def serve_baseline(log: Log) -> None:
    log.append([Outgoing.of(ROUTES, NAME, RouteEvent(payload=baseline_route(NAME))).record()])


def versions(log: Log) -> dict[str, float]:
    return {target.version: target.weight for target in routes_on(log)[NAME].targets}


def states(log: EmbeddedLog) -> list[tuple[str, str]]:
    found = log.read(CHECKPOINTS.name, _partition(log), 0, 100)
    return [(e.version, str(e.state)) for e in (_checkpoint(record.value) for record in found)]


def _partition(log: EmbeddedLog) -> int:
    return next(partition for partition, end in log.ends(CHECKPOINTS.name).items() if end)


def _checkpoint(value: bytes | None) -> Checkpoint:
    return CheckpointEvent.model_validate_json(value or b"").payload


def audits(log: EmbeddedLog) -> list[Audit]:
    return [
        AuditEvent.model_validate_json(r.value or b"").payload
        for r in log.read(AUDIT.name, 0, 0, 100)
    ]


def test_promoting_by_hand_retires_what_was_promoted_and_holds_the_route(log: EmbeddedLog) -> None:
    serve_baseline(log)
    announce(log, "v1", CheckpointState.EVALUATED, CheckpointState.PROMOTED)
    announce(log, "v2")
    route = promote(log, "ada", NAME, "v2", "it looks better")
    assert (versions(log), route.held) == ({"v2": 1.0}, True)
    assert states(log)[-3:] == [("v1", "retired"), ("v2", "evaluated"), ("v2", "promoted")]
    (audit,) = audits(log)
    assert (audit.actor, audit.action, audit.subject, audit.reason) == (
        "ada",
        "routes.promote",
        NAME,
        "it looks better",
    )
    assert [target.version for target in Route.model_validate(audit.before).targets] == ["uniform"]


def test_rolling_back_serves_what_was_served_before(log: EmbeddedLog) -> None:
    serve_baseline(log)
    announce(log, "v1", CheckpointState.EVALUATED, CheckpointState.PROMOTED)
    promote(log, "ada", NAME, "v1", "")
    roll_back(log, "ada", NAME, "worse")
    assert versions(log) == {"uniform": 1.0}
    assert states(log)[-1] == ("v1", "rolled-back")


@pytest.mark.parametrize(
    ("ended", "before"),
    [
        (CheckpointState.REJECTED, [CheckpointState.EVALUATED]),
        (CheckpointState.RETIRED, [CheckpointState.EVALUATED, CheckpointState.PROMOTED]),
        (CheckpointState.ROLLED_BACK, [CheckpointState.EVALUATED, CheckpointState.PROMOTED]),
    ],
)
def test_a_version_that_came_to_an_end_can_be_promoted_by_hand(
    log: EmbeddedLog, ended: CheckpointState, before: list[CheckpointState]
) -> None:
    serve_baseline(log)
    announce(log, "v1", *before, ended)
    promote(log, "ada", NAME, "v1", "I know better")
    assert versions(log) == {"v1": 1.0}
    assert states(log)[-1] == ("v1", "promoted")
    registry = Registry()
    for version, state in states(log):
        registry.apply(
            Checkpoint(name=NAME, version=version, kind="policy", state=CheckpointState(state))
        )


def test_the_baseline_can_be_promoted_by_hand(log: EmbeddedLog) -> None:
    announce(log, "v1", CheckpointState.EVALUATED)
    promote(log, "ada", NAME, "v1", "")
    promote(log, "ada", NAME, "uniform", "learning went wrong")
    assert versions(log) == {"uniform": 1.0}
    assert states(log)[-1] == ("v1", "retired")


def test_what_comes_back_by_a_rollback_is_promoted_again(log: EmbeddedLog) -> None:
    serve_baseline(log)
    for version in ("v1", "v2"):
        announce(log, version, CheckpointState.EVALUATED)
        promote(log, "ada", NAME, version, "")
    roll_back(log, "ada", NAME, "worse")
    assert versions(log) == {"v1": 1.0}
    assert states(log)[-2:] == [("v2", "rolled-back"), ("v1", "promoted")]


def test_a_rollback_during_a_trial_ends_the_trial(log: EmbeddedLog) -> None:
    serve_baseline(log)
    announce(log, "v1", CheckpointState.EVALUATED)
    canary(log, "ada", NAME, "v1", 0.1, "")
    roll_back(log, "ada", NAME, "worse")
    assert versions(log) == {"uniform": 1.0}
    assert states(log)[-1] == ("v1", "rolled-back")


def test_a_rollback_follows_the_gates_promotions_after_compaction_too(
    log: EmbeddedLog, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    versions_by_gate = [candidate(store, f"v{n}", policy(0.9 + n / 100)) for n in (1, 2, 3)]
    promoted(log, store, *held_out(40), *versions_by_gate)
    *_, newest = read_all(log, ROUTES.name)
    with EmbeddedLog(tmp_path / "compacted.db") as compacted:
        compacted.append([NewRecord(ROUTES.name, newest.key, newest.value)])
        assert versions(compacted) == {"v3": 1.0}
        for version in ("v2", "v1", "uniform"):
            roll_back(compacted, "ada", NAME, "worse")
            assert versions(compacted) == {version: 1.0}


def serve(log: Log, version: str) -> None:
    route = Route(name=NAME, kind="policy", targets=[RouteTarget(version=version)])
    log.append([Outgoing.of(ROUTES, NAME, RouteEvent(payload=route)).record()])


def test_rolling_back_goes_to_what_the_gate_served_before_and_then_further(
    log: EmbeddedLog,
) -> None:
    serve_baseline(log)
    by_hand = Route(name=NAME, kind="policy", targets=[RouteTarget(version="v1")])
    set_route(log, "ada", by_hand, "")
    release(log, "ada", NAME, "")
    serve(log, "v2")
    serve(log, "v3")
    for version in ("v2", "v1", "uniform"):
        roll_back(log, "ada", NAME, "worse")
        assert versions(log) == {version: 1.0}
    with pytest.raises(ControlError, match="nothing but uniform"):
        roll_back(log, "ada", NAME, "worse")


def test_a_record_that_cannot_be_read_stops_neither_start_nor_changes_by_hand(
    tmp_path: Path,
) -> None:
    settings = Settings(data_dir=tmp_path)
    with EmbeddedLog(settings.log_path) as log:
        log.append([NewRecord(ROUTES.name, NAME.encode(), b"not an event")])
        log.append([NewRecord(AUDIT.name, NAME.encode(), b"not an event")])
        log.append([NewRecord(CHECKPOINTS.name, NAME.encode(), b"not an event")])
        publish_initial_routes(settings, {})
        serve_baseline(log)
        serve(log, "v1")
        roll_back(log, "ada", NAME, "")
        assert versions(log) == {"uniform": 1.0}


def test_a_canary_gets_its_share_and_can_be_drained(log: EmbeddedLog) -> None:
    serve_baseline(log)
    announce(log, "v1", CheckpointState.EVALUATED)
    canary(log, "ada", NAME, "v1", 0.1, "")
    assert versions(log) == {"uniform": pytest.approx(0.9), "v1": 0.1}
    assert states(log)[-1] == ("v1", "canary")
    drain(log, "ada", NAME, "v1", "")
    assert versions(log)["v1"] == 0.0
    with pytest.raises(ControlError, match="would serve nothing"):
        drain(log, "ada", NAME, "uniform", "")
    assert release(log, "ada", NAME, "").held is False
    assert [audit.action for audit in audits(log)] == [
        "routes.canary",
        "routes.drain",
        "routes.release",
    ]


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (lambda log: promote(log, "a", NAME, "v9", ""), "there is no checkpoint 'v9'"),
        (lambda log: roll_back(log, "a", NAME, ""), "nothing but uniform was ever served"),
        (lambda log: roll_back(log, "a", "nobody", ""), "there is no route 'nobody'"),
        (lambda log: canary(log, "a", "nobody", "v1", 0.1, ""), "there is no route 'nobody'"),
        (lambda log: canary(log, "a", NAME, "uniform", 0.1, ""), "serves nothing but uniform"),
        (lambda log: drain(log, "a", NAME, "v9", ""), "does not serve 'v9'"),
        (lambda log: release(log, "a", "nobody", ""), "there is no route 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    log: EmbeddedLog, work: Callable[[Log], Any], says: str
) -> None:
    serve_baseline(log)
    with pytest.raises(ControlError, match=says):
        work(log)
    assert versions(log) == {"uniform": 1.0}
    assert audits(log) == []


def test_what_a_person_holds_the_gate_does_not_replace(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    processor = Promotion(GateConfig(), store)
    held = RouteEvent(payload=baseline_route(NAME).model_copy(update={"held": True}))
    state: PromotionState | None = processor.handle(None, held, events.record(held, 0)).state
    assert state is not None
    assert processor.decode_state(processor.encode_state(state)).held
    freed = RouteEvent(payload=baseline_route(NAME))
    state = processor.handle(state, freed, events.record(freed, 1)).state
    assert state is not None
    assert not state.held


def test_over_http_a_route_is_set_and_rolled_back_and_running_gateways_follow(
    gateway: Gateway, upstream_url: str
) -> None:
    wanted = model_route("tiny", upstream_url, "v2").model_dump(
        mode="json", exclude={"name", "held", "history", "control"}
    )
    assert (
        gateway.http.put("/everloop/v1/routes/tiny", json=wanted | {"reason": "new"}).json()["held"]
        is True
    )
    eventually(lambda: gateway.chat().headers["x-everloop-checkpoint"] == "v2", "the new route")
    assert gateway.http.post("/everloop/v1/routes/tiny/rollback", json={"reason": "bad"}).is_success
    eventually(lambda: gateway.chat().headers["x-everloop-checkpoint"] == "v1", "the old route")
    shown = {
        route["name"]: route for route in gateway.http.get("/everloop/v1/routes").json()["routes"]
    }["tiny"]
    assert shown["held"] is True
    (target,) = shown["targets"]
    assert (target["version"], target["up"], target["inflight"]) == ("v1", True, 0)
    assert target["pinned_rollouts"] >= 1
    trail = gateway.events(AUDIT, AuditEvent)
    assert [(e.payload.actor, e.payload.action, e.payload.reason) for e in trail] == [
        ("anonymous", "routes.set", "new"),
        ("anonymous", "routes.rollback", "bad"),
    ]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/tiny", {"kind": "model", "targets": [{"version": "x"}]}, 400),
        ("PUT", "/tiny", {"kind": "model", "targets": []}, 422),
        (
            "PUT",
            "/tiny",
            {
                "kind": "model",
                "targets": [{"version": "x", "endpoint": {"base_url": "ftp://a", "model": "m"}}],
            },
            400,
        ),
        ("PUT", "/a%20b", {"kind": "policy", "targets": [{"version": "x"}]}, 400),
        ("POST", "/nobody/rollback", {}, 409),
        ("POST", "/tiny/promote", {"version": "v9"}, 409),
        ("POST", "/tiny/canary", {"version": "v9", "share": 1.5}, 422),
        ("POST", "/tiny/drain", {"version": "v1"}, 409),
        ("POST", "/nobody/release", {}, 409),
    ],
)
def test_over_http_what_cannot_be_done_is_a_problem_document(
    gateway: Gateway, method: str, path: str, body: dict[str, Any], status: int
) -> None:
    answer = gateway.http.request(method, f"/everloop/v1/routes{path}", json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert gateway.events(AUDIT, AuditEvent) == []


def test_a_rollout_begun_under_a_drained_version_keeps_it(
    gateway: Gateway, upstream_url: str
) -> None:
    pinned = {"x-everloop-rollout-id": "r1"}
    assert gateway.chat(headers=pinned).headers["x-everloop-checkpoint"] == "v1"
    both = model_route("tiny", upstream_url, "v2")
    first = model_route("tiny", upstream_url, "v1").targets[0].model_copy(update={"weight": 0.0})
    publish(gateway.settings.log_path, both.model_copy(update={"targets": [first, *both.targets]}))
    eventually(lambda: gateway.chat().headers["x-everloop-checkpoint"] == "v2", "the drained route")
    assert gateway.chat(headers=pinned).headers["x-everloop-checkpoint"] == "v1"
