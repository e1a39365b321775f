"""What the gateway tells of rollouts by itself: their split, the versions they were assigned, and
whose failure a failed one was.
"""

from functools import partial
from typing import Any

import httpx
import pytest

from infra.config.settings import Settings
from infra.control.keys import create_key
from infra.gateway.app import create_app
from infra.gateway.routes.targets import unit_draw
from infra.installation.log import open_log
from learners.policies import PolicyLoader
from schemas.decisions import DecisionEvent
from schemas.endpoints import Endpoint
from schemas.keys import Scope
from schemas.rollouts import RolloutEvent
from schemas.routes import Choice, Option, Route, RouteTarget
from schemas.spans import Attribute, SpanEvent
from schemas.topics import DECISIONS, ROLLOUTS, SPANS
from streams.processors.promotion_state import baseline_route
from streams.storage.artifacts import ArtifactStore
from streams.storage.embedded.log import EmbeddedLog
from tests.conftest import serving
from tests.infra.conftest import Gateway, model_route, publish, running_gateway
from tests.waiting import eventually

DECISION = {"policy": "supervisor-policy", "context": "?", "candidates": [{"text": "a"}]}


def of(rollout: str) -> dict[str, str]:
    return {"x-everloop-rollout-id": rollout}


def create(gateway: Gateway, **new: Any) -> httpx.Response:
    answer = gateway.http.post("/everloop/v1/rollouts", json=new)
    assert answer.is_success, answer.text
    return answer


def end(gateway: Gateway, rollout: str, **ending: Any) -> httpx.Response:
    return gateway.http.post(f"/everloop/v1/rollouts/{rollout}/end", json=ending)


def told(gateway: Gateway, rollout: str, count: int = 1) -> list[RolloutEvent]:
    """Return what is on the log of a rollout, once there is this much."""

    def enough() -> list[RolloutEvent]:
        found = gateway.events(ROLLOUTS, RolloutEvent)
        of_it = [event for event in found if event.rollout_id == rollout]
        return of_it if len(of_it) >= count else []

    return eventually(enough, f"{count} events of {rollout}")


def held_out(rollout: str, share: float = 0.2) -> bool:
    return unit_draw("held out", rollout) < share


HELD_OUT = next(f"r{n}" for n in range(100) if held_out(f"r{n}"))
TAUGHT = next(f"r{n}" for n in range(100) if not held_out(f"r{n}"))


def test_a_fifth_of_rollouts_is_held_out_and_every_answer_says_so(gateway: Gateway) -> None:
    said = {}
    for number in range(100):
        name = f"call-{number}"
        said[name] = gateway.chat(headers=of(name)).headers["x-everloop-split"]
    assert set(said.values()) == {"train", "validation"}
    assert 8 <= list(said.values()).count("validation") <= 35
    events = gateway.soon(ROLLOUTS, RolloutEvent, 100)
    assert {event.rollout_id: event.payload.split for event in events} == said
    assert not any(event.payload.split_chosen for event in events)


@pytest.mark.parametrize("rollout", [HELD_OUT, TAUGHT])
def test_however_a_rollout_begins_its_split_is_the_same(gateway: Gateway, rollout: str) -> None:
    expected = "validation" if rollout == HELD_OUT else "train"
    created = create(gateway, rollout_id=rollout)
    assert created.json()["split"] == created.headers["x-everloop-split"] == expected
    end(gateway, rollout, state="succeeded").raise_for_status()
    assert gateway.chat(headers=of(rollout)).headers["x-everloop-split"] == expected
    end(gateway, rollout, state="succeeded").raise_for_status()
    decided = gateway.http.post("/everloop/v1/decisions", json=DECISION | {"rollout_id": rollout})
    assert decided.headers["x-everloop-split"] == expected
    end(gateway, rollout, state="succeeded").raise_for_status()
    enqueued = [{"rollout_id": rollout, "input": 1}]
    gateway.http.post("/api/rollouts", json=enqueued).raise_for_status()
    begun = [e for e in told(gateway, rollout, 8) if e.payload.state in ("created", "started")]
    assert {event.payload.split for event in begun} == {expected}


def test_conversations_and_traces_are_held_out_as_well(
    settings: Settings, upstream_url: str
) -> None:
    held = settings.model_copy(
        update={"gateway": settings.gateway.model_copy(update={"holdout": 0.999_999})}
    )
    publish(held.log_path, model_route("tiny", upstream_url))
    trace = "0af7651916cd43dd8448eb211c80319c"
    span = {"traceId": trace, "spanId": "b7ad6b7169203331", "name": "x"}
    span |= {"startTimeUnixNano": "1", "endTimeUnixNano": "2"}
    with running_gateway(held) as gateway:
        assert gateway.chat().headers["x-everloop-split"] == "validation"
        body = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
        gateway.http.post("/v1/traces", json=body).raise_for_status()
        (began, *_) = told(gateway, trace)
    assert began.payload.split == "validation"


def test_nothing_is_held_out_where_the_share_is_zero(settings: Settings, upstream_url: str) -> None:
    none = settings.model_copy(
        update={"gateway": settings.gateway.model_copy(update={"holdout": 0.0})}
    )
    publish(none.log_path, model_route("tiny", upstream_url))
    with running_gateway(none) as gateway:
        splits = {gateway.chat(headers=of(f"r{n}")).headers["x-everloop-split"] for n in range(20)}
    assert splits == {"train"}


def test_an_agents_own_split_wins_before_the_first_call(gateway: Gateway) -> None:
    create(gateway, rollout_id=HELD_OUT, split="train")
    assert gateway.chat(headers=of(HELD_OUT)).headers["x-everloop-split"] == "train"
    for event in told(gateway, HELD_OUT, 3):
        assert (event.payload.split, event.payload.split_chosen) == ("train", True)


def test_an_agents_own_split_wins_after_the_first_call_too(
    gateway: Gateway, settings: Settings
) -> None:
    assert gateway.chat(headers=of(HELD_OUT)).headers["x-everloop-split"] == "validation"
    again = create(gateway, rollout_id=HELD_OUT, split="test", task={"id": "t1"})
    assert (again.status_code, again.json()["split"]) == (200, "test")
    assert create(gateway, rollout_id=HELD_OUT, split="test").headers["x-everloop-split"] == "test"
    assert gateway.chat(headers=of(HELD_OUT)).headers["x-everloop-split"] == "test"
    began, chosen = told(gateway, HELD_OUT, 2)
    assert (began.payload.split, began.payload.split_chosen) == ("validation", False)
    assert (chosen.payload.state, chosen.payload.split) == ("started", "test")
    assert chosen.payload.split_chosen
    assert chosen.payload.task is not None
    with running_gateway(settings) as restarted:
        assert restarted.chat(headers=of(HELD_OUT)).headers["x-everloop-split"] == "test"


def test_agent_lightnings_modes_keep_their_splits(gateway: Gateway) -> None:
    body = [
        {"rollout_id": "t", "input": 1, "is_train": True},
        {"rollout_id": "v", "input": 1, "is_train": False},
    ]
    gateway.http.post("/api/rollouts", json=body).raise_for_status()
    (train,), (validation,) = told(gateway, "t"), told(gateway, "v")
    assert (train.payload.split, train.payload.split_chosen) == ("train", True)
    assert (validation.payload.split, validation.payload.split_chosen) == ("validation", True)


def test_each_name_is_assigned_once_where_it_is_first_used(gateway: Gateway) -> None:
    create(gateway, rollout_id="r1")
    for model in ("tiny", "tiny", "plain"):
        gateway.chat(model, of("r1"))
    for _ in range(2):
        body = DECISION | {"rollout_id": "r1"}
        gateway.http.post("/everloop/v1/decisions", json=body).raise_for_status()
    end(gateway, "r1", state="succeeded").raise_for_status()
    created, started, *used, _ = told(gateway, "r1", 6)
    assert created.payload.checkpoints["failing"] == "v1"
    assert created.payload.assigned == started.payload.assigned == {}
    assert [event.payload.assigned for event in used] == [
        {"tiny": "v1"},
        {"plain": "v1"},
        {"supervisor-policy": "uniform"},
    ]
    assert {str(event.payload.state) for event in used} == {"started"}


def test_a_rollout_that_nobody_announced_begins_with_what_it_was_assigned(gateway: Gateway) -> None:
    gateway.chat("tiny", of("r1"))
    gateway.chat("plain", of("r1"))
    first, second = told(gateway, "r1", 2)
    assert (first.payload.assigned, first.payload.checkpoints) == ({"tiny": "v1"}, {"tiny": "v1"})
    assert second.payload.assigned == {"plain": "v1"}


def test_a_restarted_gateway_assigns_nothing_again(settings: Settings, upstream_url: str) -> None:
    publish(settings.log_path, *(model_route(name, upstream_url) for name in ("tiny", "plain")))
    with running_gateway(settings) as gateway:
        gateway.chat("tiny", of("r1"))
    with running_gateway(settings) as gateway:
        gateway.chat("tiny", of("r1"))
        gateway.chat("plain", of("r1"))
        gateway.soon(SPANS, SpanEvent, 3)
        assigned = [event.payload.assigned for event in told(gateway, "r1", 2)]
    assert assigned == [{"tiny": "v1"}, {"plain": "v1"}]


def test_what_a_fallback_answers_is_still_assigned_to_what_it_stood_in_for(
    settings: Settings, upstream_url: str
) -> None:
    spare = RouteTarget(
        version="spare", endpoint=Endpoint(base_url=f"{upstream_url}/v1", model="tiny")
    )
    route = model_route("failing", upstream_url).model_copy(update={"fallbacks": [spare]})
    publish(settings.log_path, route)
    with running_gateway(settings) as gateway:
        assert gateway.chat("failing", of("r1")).headers["x-everloop-checkpoint"] == "spare"
        (began,), (span,) = told(gateway, "r1"), gateway.soon(SPANS, SpanEvent)
    assert began.payload.assigned == {"failing": "v1"}
    assert span.payload.attributes[Attribute.CHECKPOINT] == "spare"


def test_a_choice_assigns_its_policy_and_the_model_it_took(
    settings: Settings, upstream_url: str
) -> None:
    choice = Choice(policy="router-policy", options=[Option(name="one", model="tiny")])
    assistant = Route(
        name="assistant", kind="choice", targets=[RouteTarget(version="v1")], choice=choice
    )
    routes = [model_route("tiny", upstream_url), baseline_route("router-policy"), assistant]
    publish(settings.log_path, *routes)
    with running_gateway(settings) as gateway:
        gateway.chat("assistant", of("r1"))
        (began,) = told(gateway, "r1")
    assert began.payload.assigned == {"tiny": "v1", "router-policy": "uniform"}


class Broken:
    """A policy that always raises."""

    media_type = "application/x-broken"
    feature_version = 1

    @classmethod
    def load(cls, content: bytes) -> "Broken":
        return cls()

    def to_bytes(self) -> bytes:
        return b""

    def probabilities(self, context: str, candidates: Any, tenant: str = "") -> list[float]:
        raise KeyError((context, candidates, tenant))


def test_a_decision_of_the_baseline_is_assigned_to_the_policy_that_broke(
    settings: Settings,
) -> None:
    store = ArtifactStore(settings.artifacts_dir)
    target = RouteTarget(version="broken", artifact=store.put(b"x", Broken.media_type))
    publish(settings.log_path, baseline_route("p").model_copy(update={"targets": [target]}))

    log, policies = partial(open_log, settings), PolicyLoader([Broken])
    app = create_app(settings.gateway, log, settings.spool_path, store, policies)
    with serving(app) as url, httpx.Client(base_url=url, timeout=20) as http:
        gateway = Gateway(url, settings, http)
        body = DECISION | {"rollout_id": "r1", "policy": "p"}
        http.post("/everloop/v1/decisions", json=body).raise_for_status()
        (began,), (decision,) = told(gateway, "r1"), gateway.soon(DECISIONS, DecisionEvent)
    assert began.payload.assigned == {"p": "broken"}
    assert decision.payload.policy_version == "uniform"


def test_a_name_that_came_after_the_rollout_began_keeps_its_version(
    settings: Settings, upstream_url: str
) -> None:
    publish(settings.log_path, model_route("plain", upstream_url))
    with running_gateway(settings) as gateway:
        create(gateway, rollout_id="r1")
        switch(gateway, model_route("tiny", upstream_url, "v1"))
        assert gateway.chat("tiny", of("r1")).headers["x-everloop-checkpoint"] == "v1"
        switch(gateway, model_route("tiny", upstream_url, "v2"))
        assert gateway.chat("tiny", of("r1")).headers["x-everloop-checkpoint"] == "v1"


def switch(gateway: Gateway, route: Route) -> None:
    """Publish a route and wait until it serves."""
    publish(gateway.settings.log_path, route)

    def served() -> bool:
        routes = gateway.http.get("/everloop/v1/routes").json()["routes"]
        now = {one["name"]: one["targets"][0]["version"] for one in routes}
        return now.get(route.name) == route.targets[0].version

    eventually(served, f"{route.name} {route.targets[0].version}")


@pytest.mark.parametrize(
    ("model", "status", "fault"),
    [
        ("failing", 500, "endpoint"),
        ("overloaded", 429, "endpoint"),
        ("absent", 502, "endpoint"),
        ("slow", 504, "endpoint"),
        ("gibberish", 200, "endpoint"),
        ("keyed", 503, "endpoint"),
        ("nobody", 404, "agent"),
        ("tiny", 200, "agent"),
    ],
)
def test_a_failed_rollout_says_whose_failure_its_last_call_was(
    gateway: Gateway, model: str, status: int, fault: str
) -> None:
    create(gateway, rollout_id="r1")
    assert gateway.chat("tiny", of("r1")).is_success
    assert gateway.chat(model, of("r1")).status_code == status
    gateway.soon(SPANS, SpanEvent, 1 if model == "nobody" else 2)
    end(gateway, "r1", state="failed", error="it broke").raise_for_status()
    *_, ended = told(gateway, "r1", 4)
    assert (ended.payload.state, ended.payload.fault) == ("failed", fault)


def test_a_call_that_works_clears_the_failure_before_it(gateway: Gateway) -> None:
    gateway.chat("failing", of("r1"))
    gateway.chat("tiny", of("r1"))
    gateway.soon(SPANS, SpanEvent, 2)
    end(gateway, "r1", state="failed").raise_for_status()
    *_, ended = told(gateway, "r1", 3)
    assert ended.payload.fault == "agent"


def test_what_the_agent_says_of_its_failure_counts(gateway: Gateway) -> None:
    gateway.chat("tiny", of("r1"))
    end(gateway, "r1", state="failed", fault="limit").raise_for_status()
    *_, ended = told(gateway, "r1", 2)
    assert ended.payload.fault == "limit"


def test_a_success_has_no_fault(gateway: Gateway) -> None:
    gateway.chat("failing", of("r1"))
    refused = end(gateway, "r1", state="succeeded", fault="agent")
    assert refused.status_code == 422
    assert "fault is 'agent' of a rollout that succeeded" in refused.json()["detail"]
    end(gateway, "r1", state="succeeded").raise_for_status()
    *_, ended = told(gateway, "r1", 2)
    assert ended.payload.fault is None


def test_a_broken_tool_call_is_the_agents_own(settings: Settings, upstream_url: str) -> None:
    strict = settings.model_copy(
        update={"gateway": settings.gateway.model_copy(update={"tool_calls": "reject"})}
    )
    publish(strict.log_path, model_route("clumsy", upstream_url))
    schema = {"type": "object", "required": ["query"], "properties": {"query": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "search", "parameters": schema}}
    with running_gateway(strict) as gateway:
        assert gateway.chat("clumsy", of("r1"), tools=[tool]).status_code == 502
        end(gateway, "r1", state="failed").raise_for_status()
        *_, ended = told(gateway, "r1", 2)
    assert ended.payload.fault == "agent"


def test_a_limit_of_ours_is_a_limits_failure(settings: Settings, upstream_url: str) -> None:
    with EmbeddedLog(settings.log_path) as log:
        secret, _ = create_key(log, "tester", "acme", (Scope.AGENT,), requests_per_minute=1)
    publish(settings.log_path, model_route("tiny", upstream_url))
    with running_gateway(settings) as gateway:
        headers = of("r1") | {"authorization": f"Bearer {secret}"}
        assert gateway.chat(headers=headers).is_success
        assert gateway.chat(headers=headers).status_code == 429
        gateway.http.post(
            "/everloop/v1/rollouts/r1/end", json={"state": "failed"}, headers=headers
        ).raise_for_status()
        *_, ended = told(gateway, "r1", 2)
    assert ended.payload.fault == "limit"


def test_a_caller_who_hangs_up_is_the_failure_of_its_conversation(
    gateway: Gateway,
) -> None:
    body = {"model": "endless", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    with gateway.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_raw())
        rollout = answer.headers["x-everloop-rollout-id"]
    *_, ended = told(gateway, rollout, 2)
    assert (ended.payload.state, ended.payload.fault) == ("failed", "caller")


def test_a_conversation_whose_server_fails_is_the_endpoints_failure(gateway: Gateway) -> None:
    gateway.chat("failing")
    _, ended = gateway.soon(ROLLOUTS, RolloutEvent, 2)
    assert (ended.payload.state, ended.payload.fault) == ("failed", "endpoint")


def test_agent_lightnings_failure_says_whose_it_was(gateway: Gateway, upstream_url: str) -> None:
    gateway.http.post("/api/rollouts", json=[{"rollout_id": "r1", "input": 1}]).raise_for_status()
    server = [{"model": "failing", "endpoint": f"{upstream_url}/v1"}]
    gateway.http.post("/api/models", json=server).raise_for_status()
    path = "/proxy/rollout/r1/attempt/0/mode/train/openai/v1/chat/completions"
    body = {"model": "x", "messages": [{"role": "user", "content": "hi"}]}
    assert gateway.http.post(path, json=body).status_code == 500
    for state in ("running", "failed"):
        status = {"status": {"state": state}}
        gateway.http.patch("/api/rollouts/r1", json=status).raise_for_status()
    *_, ended = told(gateway, "r1", 4)
    assert ended.payload.fault == "endpoint"
