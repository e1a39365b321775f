"""Traffic is switched while it flows: no request fails, no rollout sees two versions, a restart
forgets nothing.
"""

import threading
from collections import defaultdict

import httpx

from infra.config.settings import Settings
from schemas.checkpoints import Artifact
from schemas.routes import Route, RouteTarget
from schemas.topics import ROUTES
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.records import NewRecord
from tests.conftest import serving
from tests.infra.conftest import Gateway, model_route, publish, running_gateway
from tests.infra.upstream import Upstream
from tests.waiting import eventually


def serves(gateway: Gateway, version: str) -> bool:
    return bool(gateway.chat().headers.get("x-everloop-checkpoint") == version)


def switch(gateway: Gateway, route: Route) -> None:
    publish(gateway.settings.log_path, route)
    version = route.targets[0].version
    eventually(lambda: serves(gateway, version), f"version {version}")


def test_a_switch_under_load_fails_no_request_and_mixes_no_rollout(
    gateway: Gateway, upstream_url: str
) -> None:
    seen: dict[str, set[str]] = defaultdict(set)
    failures: list[httpx.Response] = []
    stop = threading.Event()

    def work(name: str) -> None:
        number = 0
        while not stop.is_set():
            rollout_id = f"{name}-{number}"
            gateway.http.post("/everloop/v1/rollouts", json={"rollout_id": rollout_id})
            for _ in range(5):
                answer = gateway.chat(headers={"x-everloop-rollout-id": rollout_id})
                seen[rollout_id].add(answer.headers.get("x-everloop-checkpoint", "none"))
                if not answer.is_success:
                    failures.append(answer)
            gateway.http.post(
                f"/everloop/v1/rollouts/{rollout_id}/end", json={"state": "succeeded"}
            )
            number += 1

    workers = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(4)]
    for worker in workers:
        worker.start()
    for number in range(2, 22):
        switch(gateway, model_route("tiny", upstream_url, f"v{number}"))
    stop.set()
    for worker in workers:
        worker.join()
    assert failures == []
    assert {len(versions) for versions in seen.values()} == {1}
    assert len(set().union(*seen.values())) > 5
    assert gateway.health()["switches"] >= 20


def test_a_rollout_keeps_its_version_over_a_switch_and_a_restart(
    settings: Settings, upstream_url: str, upstream: Upstream
) -> None:
    pinned = {"x-everloop-rollout-id": "r1"}
    publish(settings.log_path, model_route("tiny", upstream_url, "v1"))
    with running_gateway(settings) as gateway:
        gateway.http.post("/everloop/v1/rollouts", json={"rollout_id": "r1"})
        switch(gateway, model_route("tiny", upstream_url, "v2"))
        assert gateway.chat(headers=pinned).headers["x-everloop-checkpoint"] == "v1"
    with running_gateway(settings) as gateway:
        assert gateway.chat().headers["x-everloop-checkpoint"] == "v2"
        assert gateway.chat(headers=pinned).headers["x-everloop-checkpoint"] == "v1"
        gateway.http.post("/everloop/v1/rollouts/r1/end", json={"state": "succeeded"})
        assert gateway.chat(headers=pinned).headers["x-everloop-checkpoint"] == "v2"


def test_a_route_that_cannot_be_served_leaves_the_old_one(
    gateway: Gateway, upstream_url: str
) -> None:
    with EmbeddedLog(gateway.settings.log_path) as log:
        log.append(
            [
                NewRecord(ROUTES.name, b"tiny", b"not an event"),
                NewRecord(ROUTES.name, b"tiny", None),
            ]
        )
    publish(
        gateway.settings.log_path,
        Route(name="tiny", kind="model", targets=[RouteTarget(version="no-endpoint")]),
    )
    publish(gateway.settings.log_path, model_route("later", upstream_url))
    eventually(lambda: gateway.chat("later").is_success, "the route after the bad ones")
    assert gateway.chat().headers["x-everloop-checkpoint"] == "v1"


def test_a_policy_whose_artifact_is_missing_leaves_the_old_one(
    gateway: Gateway, upstream_url: str
) -> None:
    missing = Artifact(sha256="0" * 64, size=3, media_type="application/json")
    target = RouteTarget(version="lost", artifact=missing)
    publish(
        gateway.settings.log_path, Route(name="supervisor-policy", kind="policy", targets=[target])
    )
    publish(gateway.settings.log_path, model_route("later", upstream_url))
    eventually(lambda: gateway.chat("later").is_success, "the route after the bad one")
    body = {
        "rollout_id": "r",
        "policy": "supervisor-policy",
        "candidates": [{"id": "a", "text": "x"}],
    }
    assert (
        gateway.http.post("/everloop/v1/decisions", json=body).json()["policy_version"] == "uniform"
    )


def test_weights_share_rollouts_between_targets(settings: Settings, upstream: Upstream) -> None:
    with serving(upstream.app) as url:
        base = model_route("tiny", url, "stable")
        canary = model_route("tiny", url, "canary").targets[0].model_copy(update={"weight": 0.25})
        stable = base.targets[0].model_copy(update={"weight": 0.75})
        publish(settings.log_path, base.model_copy(update={"targets": [stable, canary]}))
        with running_gateway(settings) as gateway:
            versions = [
                gateway.http.post("/everloop/v1/rollouts", json={"rollout_id": f"r{n}"}).json()[
                    "checkpoints"
                ]["tiny"]
                for n in range(300)
            ]
    assert 45 < versions.count("canary") < 105
