"""Keys: who may ask what, as whose tenant, how much; hashes at rest, revoked at once, limits and
budgets kept.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.config.settings import Settings
from infra.control.keys import create_key, revoke_key
from infra.gateway.settings import GatewaySettings
from schemas.keys import Scope
from schemas.rewards import RewardEvent
from schemas.rollouts import RolloutEvent
from schemas.spans import Attribute, SpanEvent
from schemas.topics import REWARDS, ROLLOUTS, SPANS
from streams.processors.promotion_state import baseline_route
from streams.storage.embedded.log import EmbeddedLog
from streams.storage.log import read_all
from tests.infra.conftest import Gateway, model_route, publish, running_gateway
from tests.infra.upstream import Upstream
from tests.waiting import eventually


def key(settings: Settings, *scopes: Scope, tenant: str = "default", **more: Any) -> str:
    with EmbeddedLog(settings.log_path) as log:
        secret, _ = create_key(log, "tester", tenant, scopes or (Scope.AGENT,), **more)
    return secret


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def known(gateway: Gateway, secret: str) -> None:
    """Wait until a running gateway has heard of a key."""
    eventually(
        lambda: gateway.http.get("/v1/models", headers=bearer(secret)).status_code != 401,
        "the new key",
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data", gateway=GatewaySettings(keys="required", conversation_idle_s=60)
    )


@pytest.fixture
def guarded(settings: Settings, upstream_url: str) -> Iterator[Gateway]:
    route = model_route("tiny", upstream_url, input_price=1e6)
    publish(settings.log_path, route, baseline_route("supervisor-policy"))
    with running_gateway(settings) as gateway:
        yield gateway


REQUESTS = [
    ("POST", "/v1/chat/completions", Scope.AGENT),
    ("GET", "/v1/models", Scope.AGENT),
    ("POST", "/v1/traces", Scope.AGENT),
    ("POST", "/rollout/r/v1/embeddings", Scope.AGENT),
    ("POST", "/everloop/v1/rollouts", Scope.AGENT),
    ("POST", "/everloop/v1/rollouts/r/end", Scope.AGENT),
    ("POST", "/everloop/v1/decisions", Scope.AGENT),
    ("POST", "/everloop/v1/rewards", Scope.FEEDBACK),
    ("POST", "/everloop/v1/rewards/bulk", Scope.FEEDBACK),
    ("GET", "/everloop/v1/routes", Scope.AGENT),
    ("PUT", "/everloop/v1/routes/tiny", Scope.ADMIN),
    ("POST", "/everloop/v1/routes/tiny/rollback", Scope.ADMIN),
    ("POST", "/api/rollouts", Scope.AGENT),
    ("GET", "/api/rollouts?state_in=queuing", Scope.AGENT),
    ("POST", "/api/models", Scope.ADMIN),
    ("DELETE", "/api/models", Scope.ADMIN),
    ("POST", "/proxy/pause", Scope.ADMIN),
    ("GET", "/proxy/state", Scope.ADMIN),
]


@pytest.mark.parametrize(("method", "path", "scope"), REQUESTS)
def test_every_request_needs_a_key_with_its_scope(
    guarded: Gateway, method: str, path: str, scope: Scope
) -> None:
    other = Scope.FEEDBACK if scope is not Scope.FEEDBACK else Scope.AGENT
    right, wrong = key(guarded.settings, scope), key(guarded.settings, other)
    known(guarded, wrong)

    def status(headers: dict[str, str]) -> int:
        return guarded.http.request(method, path, headers=headers).status_code

    assert status({}) == 401
    assert status(bearer("sk-dummy")) == 401
    assert status(bearer(right[:-1] + ("a" if right[-1] != "a" else "b"))) == 401
    assert status(bearer("evl_000000000000_nothing")) == 401
    assert status(bearer(wrong)) == 403
    assert status(bearer(right)) not in (401, 403)
    assert status({"x-api-key": right}) not in (401, 403)


def test_an_admin_may_do_everything(guarded: Gateway) -> None:
    admin = key(guarded.settings, Scope.ADMIN)
    known(guarded, admin)
    assert guarded.chat(headers=bearer(admin)).is_success


def test_every_route_of_the_application_is_listed_here_or_open() -> None:
    from infra.installation.apps import gateway_app

    opened = {"/healthz", "/livez", "/readyz", "/metrics", "/openapi.json"}
    listed = {path.partition("?")[0] for _, path, _ in REQUESTS}
    paths = set(gateway_app(Settings()).openapi()["paths"])
    covered = {path for path in paths for other in listed if _alike(path, other)}
    alike = {"/v1/models/{name}", "/v1/completions", "/v1/responses", "/v1/embeddings"}
    prefixes = ("/everloop/v1/routes/", "/api/rollouts/", "/proxy/", "/rollout/")
    assert {p for p in paths - covered - opened - alike if not p.startswith(prefixes)} == set()


def _alike(template: str, path: str) -> bool:
    parts, others = template.split("/"), path.split("/")
    return len(parts) == len(others) and all(
        a == b or a.startswith("{") for a, b in zip(parts, others, strict=True)
    )


def test_health_and_metrics_are_open(guarded: Gateway) -> None:
    for path in ("/healthz", "/livez", "/readyz", "/metrics"):
        assert guarded.http.get(path).is_success, path


def test_only_a_hash_is_kept_and_a_key_is_shown_to_nobody(guarded: Gateway) -> None:
    secret = key(guarded.settings)
    known(guarded, secret)
    guarded.chat(headers=bearer(secret))
    guarded.soon(SPANS, SpanEvent)
    for file in guarded.settings.data_dir.rglob("*"):
        if file.is_file():
            assert secret.partition("_")[2].partition("_")[2].encode() not in file.read_bytes(), (
                file
            )
    assert secret[-20:] not in guarded.http.get("/metrics").text


def test_a_revoked_key_and_an_expired_one_are_refused_with_why(guarded: Gateway) -> None:
    secret = key(guarded.settings)
    known(guarded, secret)
    with EmbeddedLog(guarded.settings.log_path) as log:
        revoke_key(log, "tester", secret.split("_")[1], "lost")
    eventually(lambda: guarded.chat(headers=bearer(secret)).status_code == 401, "the revocation")
    assert "revoked" in guarded.chat(headers=bearer(secret)).json()["detail"]
    past = key(guarded.settings, expires=datetime.now(UTC) - timedelta(seconds=1))
    eventually(
        lambda: "expired" in guarded.chat(headers=bearer(past)).json()["detail"], "the expired key"
    )


def test_tenants_with_one_rollout_id_do_not_meet(guarded: Gateway) -> None:
    first = key(guarded.settings, Scope.AGENT, Scope.FEEDBACK, tenant="acme")
    second = key(guarded.settings, Scope.AGENT, Scope.FEEDBACK, tenant="globex")
    known(guarded, second)
    for secret in (first, second):
        named = bearer(secret) | {"x-everloop-rollout-id": "r1"}
        assert (
            guarded.http.post(
                "/everloop/v1/rollouts", json={"rollout_id": "r1"}, headers=named
            ).status_code
            == 201
        )
        guarded.chat(headers=named)
        body = {"rollout_id": "r1", "value": 0.5, "idempotency_key": "one"}
        guarded.http.post("/everloop/v1/rewards", json=body, headers=named).raise_for_status()
        decision = {
            "rollout_id": "r1",
            "policy": "supervisor-policy",
            "candidates": [{"text": "a"}],
        }
        guarded.http.post("/everloop/v1/decisions", json=decision, headers=named).raise_for_status()
    guarded.soon(SPANS, SpanEvent, 2)
    assert len({event.event_id for event in guarded.events(REWARDS, RewardEvent)}) == 2
    begun = [
        event for event in guarded.events(ROLLOUTS, RolloutEvent) if not event.payload.assigned
    ]
    assert [event.tenant for event in begun] == ["acme"] * 2 + ["globex"] * 2
    with EmbeddedLog(guarded.settings.log_path) as log:
        for topic in (ROLLOUTS, SPANS, REWARDS):
            assert {record.key for record in read_all(log, topic.name)} == {
                b"acme|r1",
                b"globex|r1",
            }


def test_a_tenants_own_model_answers_its_calls_and_nobody_elses(
    settings: Settings, upstream: Upstream, upstream_url: str
) -> None:
    own = model_route("tiny", upstream_url, version="tuned").model_copy(
        update={"name": "tiny@acme"}
    )
    publish(settings.log_path, model_route("tiny", upstream_url), own)
    acme, globex = (bearer(key(settings, tenant=tenant)) for tenant in ("acme", "globex"))
    with running_gateway(settings) as gateway:
        versions = [
            gateway.chat(headers=of).headers["x-everloop-checkpoint"] for of in (acme, globex)
        ]
        assert versions == ["tuned", "v1"]
        assert gateway.chat("tiny@acme", headers=acme).headers["x-everloop-checkpoint"] == "tuned"
        refused = gateway.chat("tiny@acme", headers=globex)
        assert (refused.status_code, "tuned" in refused.text) == (404, False)
        for of in (acme, globex):
            listed = [
                model["id"] for model in gateway.http.get("/v1/models", headers=of).json()["data"]
            ]
            assert listed == ["tiny"]
        assert gateway.http.get("/v1/models/tiny@acme", headers=globex).status_code == 404
        spans = gateway.soon(SPANS, SpanEvent, 3)
    assert [span.payload.attributes[Attribute.REQUEST_MODEL] for span in spans] == [
        "tiny",
        "tiny",
        "tiny@acme",
    ]
    assert len(upstream.asked) == 3


def test_a_span_names_its_key_and_a_conversation_belongs_to_its_tenant(guarded: Gateway) -> None:
    secrets = [key(guarded.settings, tenant=tenant) for tenant in ("acme", "globex")]
    known(guarded, secrets[1])
    ids = [
        guarded.chat(headers=bearer(secret)).headers["x-everloop-rollout-id"] for secret in secrets
    ]
    said = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello there"},
        {"role": "user", "content": "more"},
    ]
    more = [guarded.chat(messages=said, headers=bearer(secret)) for secret in secrets]
    assert [answer.headers["x-everloop-rollout-id"] for answer in more] == ids
    spans = guarded.soon(SPANS, SpanEvent, 4)
    assert {span.payload.attributes[Attribute.KEY_ID] for span in spans} == {
        s.split("_")[1] for s in secrets
    }


def test_requests_over_the_rate_are_told_when_to_come_back(guarded: Gateway) -> None:
    secret = key(guarded.settings, requests_per_minute=2)
    known(guarded, secret)
    statuses = [guarded.chat(headers=bearer(secret)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    answer = guarded.chat(headers=bearer(secret))
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    assert answer.json()["error"]["code"] == "rate_limit_reached"


def test_tokens_over_the_rate_are_refused(guarded: Gateway) -> None:
    secret = key(guarded.settings, tokens_per_minute=10)  # a call takes 9
    known(guarded, secret)
    assert guarded.chat(headers=bearer(secret)).is_success
    assert guarded.chat(headers=bearer(secret)).is_success
    assert "10 tokens a minute" in guarded.chat(headers=bearer(secret)).json()["detail"]


def test_a_budget_lasts_over_a_restart(settings: Settings, upstream_url: str) -> None:
    publish(settings.log_path, model_route("tiny", upstream_url, input_price=1e6))  # a call costs 7
    secret = key(settings, budget=10.0)
    with running_gateway(settings) as gateway:
        assert gateway.chat(headers=bearer(secret)).is_success
        gateway.soon(SPANS, SpanEvent)
    with running_gateway(settings) as gateway:
        assert gateway.chat(headers=bearer(secret)).is_success
        gateway.soon(SPANS, SpanEvent, 2)
        answer = gateway.chat(headers=bearer(secret))
    assert answer.status_code == 402
    assert "14.0000 of 10" in answer.json()["detail"]


def test_without_keys_required_any_dummy_is_anybody_but_a_wrong_key_of_ours_is_refused(
    tmp_path: Path, upstream_url: str
) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    publish(settings.log_path, model_route("tiny", upstream_url))
    with running_gateway(settings) as gateway:
        assert gateway.chat(headers=bearer("sk-dummy")).is_success
        assert gateway.chat(headers=bearer("evl_000000000000_nothing")).status_code == 401
        mine = key(settings, tenant="acme")
        eventually(lambda: gateway.chat(headers=bearer(mine)).is_success, "the new key")
        assert {event.tenant for event in gateway.soon(SPANS, SpanEvent, 2)} == {"default", "acme"}


@pytest.mark.parametrize(
    ("host", "keys", "required"),
    [
        ("127.0.0.1", "auto", False),
        ("0.0.0.0", "auto", True),
        ("0.0.0.0", "optional", False),
        ("::1", "required", True),
    ],
)
def test_keys_are_asked_for_where_others_can_reach_the_gateway(
    host: str, keys: Any, required: bool
) -> None:
    assert GatewaySettings(host=host, keys=keys).keys_required is required


def test_a_body_may_not_be_sent_too_slowly(settings: Settings) -> None:
    fast = settings.model_copy(update={"gateway": GatewaySettings(body_timeout_s=0.2)})

    def drip() -> Iterator[bytes]:
        yield b'{"model": "tiny", '
        time.sleep(1)
        yield b'"messages": []}'

    with running_gateway(fast) as gateway:
        try:
            answer = gateway.http.post("/v1/chat/completions", content=drip())
        except httpx.RemoteProtocolError:
            return  # closed while it was still sending
    assert answer.status_code in (400, 408)
