"""Agent Lightning's API: its rules, its shapes, and a state that a restart does not change."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from infra.config.settings import Settings
from schemas.rewards import RewardEvent
from schemas.rollouts import RolloutEvent
from schemas.spans import SpanEvent
from schemas.topics import REWARDS, ROLLOUTS, SPANS
from tests.infra.conftest import Gateway, model_route, publish, running_gateway
from tests.infra.upstream import Upstream

PROXY = "/proxy/rollout/r1/attempt/0/mode/{mode}/openai/v1/{path}"
CHAT: dict[str, Any] = {
    "model": "whatever",
    "messages": [{"role": "user", "content": "hi"}],
    "temperature": 0.1,
}


def enqueue(gateway: Gateway, *ids: str, **more: Any) -> Any:
    answer = gateway.http.post(
        "/api/rollouts",
        json=[{"rollout_id": i, "input": {"data_id": f"d-{i}"}, **more} for i in ids],
    )
    assert answer.status_code == 201, answer.text
    return answer.json()


def patch(gateway: Gateway, rollout_id: str, **status: Any) -> Any:
    return gateway.http.patch(f"/api/rollouts/{rollout_id}", json={"status": status})


def run(gateway: Gateway, rollout_id: str, state: str = "succeeded") -> None:
    assert patch(gateway, rollout_id, state="running").is_success
    assert patch(gateway, rollout_id, state=state).is_success


def register(gateway: Gateway, url: str, model: str = "tiny") -> None:
    body = [{"model": model, "endpoint": f"{url}/v1", "version": 7}]
    assert gateway.http.post("/api/models", json=body).status_code == 201


def ask(gateway: Gateway, mode: str = "train", path: str = "chat/completions", **more: Any) -> Any:
    return gateway.http.post(PROXY.format(mode=mode, path=path), json=CHAT | more)


def test_enqueuing_is_idempotent_by_id_and_lists_by_state(gateway: Gateway) -> None:
    (first,) = enqueue(gateway, "r1", metadata={"batch_idx": 3, "own": "kept"})
    assert first["status"]["state"] == "queuing"
    assert first["config"] == {"timeout_seconds": 3600, "local": None, "k8s": None}
    assert first["metadata"] == {"batch_idx": 3, "sample_idx_in_batch": None, "own": "kept"}
    assert enqueue(gateway, "r1", is_train=False) == [first]
    (unnamed,) = gateway.http.post("/api/rollouts", json=[{"input": "x"}]).json()
    assert len(unnamed["rollout_id"]) == 32
    enqueue(gateway, "r2")
    run(gateway, "r2", "failed")
    listed = gateway.http.get(
        "/api/rollouts", params={"state_in": ["queuing", "failed"], "limit": 2}
    ).json()
    assert [rollout["rollout_id"] for rollout in listed] == ["r1", unnamed["rollout_id"]]
    assert gateway.http.get("/api/rollouts").status_code == 422


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (["running", "succeeded"], 200),
        (["running", "failed"], 200),
        (["failed"], 200),
        (["succeeded"], 409),
        (["running", "queuing"], 409),
        (["running", "succeeded", "failed"], 409),
        (["failed", "running"], 409),
        (["dreaming"], 422),
    ],
)
def test_only_legal_transitions_are_made(gateway: Gateway, path: list[str], status: int) -> None:
    enqueue(gateway, "r1")
    answers = [patch(gateway, "r1", state=state) for state in path]
    assert answers[-1].status_code == status
    before = [answer.json() for answer in answers if answer.is_success]
    shown = gateway.http.get("/api/rollouts/r1").json()["rollout"]
    assert shown["status"]["version"] == 1 + len(before)


def test_of_two_endings_at_once_one_is_refused(gateway: Gateway) -> None:
    for number in range(10):
        enqueue(gateway, rollout_id := f"r{number}")
        patch(gateway, rollout_id, state="running")
        with ThreadPoolExecutor(2) as pool:
            ends = list(
                pool.map(
                    lambda state, r=rollout_id: patch(gateway, r, state=state),
                    ["succeeded", "failed"],
                )
            )
        assert sorted(answer.status_code for answer in ends) == [200, 409]
    assert gateway.http.get("/api/rollouts/terminal").json()["total_terminal"] == 10


def test_other_members_of_the_status_can_be_patched_and_unknown_ones_not(gateway: Gateway) -> None:
    enqueue(gateway, "r1")
    assert patch(gateway, "r1", k8s_job_name="job").json()["status"]["k8s_job_name"] == "job"
    assert patch(gateway, "r1", wishes=1).status_code == 422
    assert gateway.http.patch("/api/rollouts/r1", json={}).json()["status"]["version"] == 2
    assert patch(gateway, "nobody", state="running").status_code == 404


def test_ended_rollouts_are_paged_in_the_order_they_ended(gateway: Gateway) -> None:
    enqueue(gateway, "r1", "r2", "r3", is_train=False)
    for rollout_id in ("r2", "r1"):
        run(gateway, rollout_id)
    page = gateway.http.get("/api/rollouts/terminal", params={"limit": 1}).json()
    assert page == {
        "items": [{"rollout_id": "r2", "state": "succeeded", "data_id": "d-r2", "is_train": False}],
        "next_after": 1,
        "total_terminal": 2,
    }
    gateway.http.delete("/api/rollouts/r1")
    rest = gateway.http.get("/api/rollouts/terminal", params={"after": 1}).json()
    assert (rest["items"], rest["next_after"]) == ([], 2)


def test_deleting_is_idempotent_and_forgets_the_events(gateway: Gateway) -> None:
    enqueue(gateway, "r1")
    assert [gateway.http.delete("/api/rollouts/r1").status_code for _ in range(2)] == [204, 204]
    assert gateway.http.get("/api/rollouts/r1").status_code == 404
    assert gateway.http.get("/api/rollouts/r1/events").status_code == 404


def test_events_belong_to_attempts_and_rewards_count(gateway: Gateway) -> None:
    enqueue(gateway, "r1")
    for attempt, kind, data in (
        ("0", "note", {"a": 1}),
        ("0", "reward", {"value": 0.5, "message": "ok"}),
        ("1", "note", {}),
    ):
        body = {"event_type": kind, "data": data}
        posted = gateway.http.post(f"/api/rollouts/r1/attempt/{attempt}/events", json=body).json()
        assert (posted["event_type"], posted["data"], posted["attempt_id"]) == (kind, data, attempt)
    assert gateway.http.get("/api/rollouts/r1").json()["attempts"] == ["0", "1"]
    events = gateway.http.get("/api/rollouts/r1/events").json()
    assert [event["event_type"] for event in events] == ["note", "reward"]
    only = gateway.http.get(
        "/api/rollouts/r1/events", params={"event_type": "reward", "format": "triplet"}
    ).json()
    assert [event["data"] for event in only] == [{"value": 0.5}]
    patch(gateway, "r1", last_attempt_id="1")
    assert len(gateway.http.get("/api/rollouts/r1/events").json()) == 1
    (reward,) = gateway.events(REWARDS, RewardEvent)
    assert (reward.rollout_id, reward.payload.value) == ("r1", 0.5)
    body = {"event_type": "note"}
    assert gateway.http.post("/api/rollouts/nobody/attempt/0/events", json=body).status_code == 404


def test_the_proxy_sets_what_the_mode_asks_for_and_records_the_tokens(
    gateway: Gateway, upstream: Upstream, upstream_url: str
) -> None:
    enqueue(gateway, "r1")
    assert ask(gateway).status_code == 503
    register(gateway, upstream_url, "detailed")
    assert ask(gateway).json()["prompt_token_ids"] == [5, 6]
    assert ask(gateway, "val").is_success
    train, val = upstream.asked
    assert (train["model"], train["temperature"], train["logprobs"]) == ("detailed", 1.0, True)
    assert train["return_token_ids"] is True
    assert (val["temperature"], val.get("logprobs")) == (0.7, None)
    events = gateway.http.get("/api/rollouts/r1/events").json()
    assert [event["data"]["server"]["version"] for event in events] == [7, 7]
    assert events[0]["data"]["request"]["messages"] == CHAT["messages"]
    assert events[0]["data"]["usage"]["total_tokens"] == 9
    (triplet,) = gateway.http.get("/api/rollouts/r1/events", params={"format": "triplet"}).json()
    assert triplet["data"] == {
        "prompt_token_ids": [5, 6],
        "response_token_ids": [1, 2],
        "response_log_probs": [-0.5, -0.25],
        "server": {"model": "detailed", "version": 7},
        "http_status": 200,
        "status": "ok",
    }
    assert {span.rollout_id for span in gateway.soon(SPANS, SpanEvent, 2)} == {"r1"}


def test_a_stream_through_the_proxy_is_recorded_as_one_answer(
    gateway: Gateway, upstream_url: str
) -> None:
    enqueue(gateway, "r1")
    register(gateway, upstream_url)
    with gateway.http.stream(
        "POST", PROXY.format(mode="train", path="chat/completions"), json=CHAT | {"stream": True}
    ) as answer:
        assert b"[DONE]" in b"".join(answer.iter_raw())
    (event,) = gateway.http.get("/api/rollouts/r1/events").json()
    (choice,) = event["data"]["response"]["choices"]
    assert choice["message"]["content"] == "hello there"
    assert choice["message"]["tool_calls"][0]["id"] == "call_1"
    assert event["data"]["finish_reason"] == "stop"


def test_a_call_that_fails_is_an_event_with_its_error(gateway: Gateway, upstream_url: str) -> None:
    enqueue(gateway, "r1")
    register(gateway, upstream_url, "failing")
    assert ask(gateway).status_code == 500
    (event,) = gateway.http.get("/api/rollouts/r1/events", params={"format": "triplet"}).json()
    assert (event["data"]["status"], event["data"]["http_status"]) == ("error", 500)
    assert event["data"]["response_log_probs"] is None
    assert gateway.http.get("/proxy/state").json()["inflight"] == 0


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/proxy/rollout/nobody/attempt/0/mode/train/openai/v1/chat/completions", 404),
        ("/proxy/rollout/r1/attempt/0/mode/test/openai/v1/chat/completions", 422),
        ("/proxy/rollout/r1/attempt/0/mode/train/openai/v1/embeddings", 422),
    ],
)
def test_a_proxy_path_that_is_none_is_refused(gateway: Gateway, path: str, status: int) -> None:
    enqueue(gateway, "r1")
    assert gateway.http.post(path, json=CHAT).status_code == status


def test_a_paused_proxy_says_when_to_come_back(gateway: Gateway, upstream_url: str) -> None:
    enqueue(gateway, "r1")
    register(gateway, upstream_url)
    asked = {"retry_after_seconds": 9, "reason": "weights"}
    paused = {"paused": True, "retry_after_seconds": 9, "reason": "weights", "inflight": 0}
    assert gateway.http.post("/proxy/pause", json=asked).json() == paused
    answer = ask(gateway)
    assert (answer.status_code, answer.headers["retry-after"], answer.headers["x-agl-paused"]) == (
        429,
        "9",
        "true",
    )
    assert gateway.chat().is_success, "agents in production are served on"
    assert gateway.http.post("/proxy/resume").json()["paused"] is False
    assert ask(gateway).is_success


def test_models_are_cleared_and_a_dangerous_endpoint_is_refused(
    gateway: Gateway, upstream_url: str
) -> None:
    enqueue(gateway, "r1")
    register(gateway, upstream_url)
    assert gateway.http.delete("/api/models").json() == {"status": "ok"}
    assert ask(gateway).status_code == 503
    for endpoint in (
        "http://169.254.169.254/v1",
        "file:///etc/passwd",
        "http://a:b@host/v1",
        "http://[fe80::1]/v1",
    ):
        answer = gateway.http.post("/api/models", json=[{"model": "tiny", "endpoint": endpoint}])
        assert answer.status_code == 400, endpoint


def test_what_it_means_is_told_to_the_learners(gateway: Gateway) -> None:
    enqueue(gateway, "r1", "r2", is_train=False)
    run(gateway, "r1")
    patch(gateway, "r2", state="failed", error_message="no worker")
    told = [
        (e.rollout_id, str(e.payload.state), e.payload.split)
        for e in gateway.events(ROLLOUTS, RolloutEvent)
    ]
    assert told[:2] == [("r1", "created", "validation"), ("r2", "created", "validation")]
    assert [state for _, state, _ in told[2:]] == ["started", "succeeded", "failed"]
    first, second = gateway.events(ROLLOUTS, RolloutEvent)[:2]
    assert first.payload.task is not None
    assert second.payload.task is not None
    assert first.payload.task.id != second.payload.task.id


def test_a_restart_loses_nothing(settings: Settings, upstream_url: str) -> None:
    publish(settings.log_path, model_route("other", upstream_url))

    def shown(gateway: Gateway) -> list[Any]:
        gets = [
            "/api/rollouts/r1",
            "/api/rollouts/terminal",
            "/api/rollouts/r1/events?format=triplet",
            "/proxy/state",
        ]
        return [gateway.http.get(path).json() for path in gets]

    with running_gateway(settings) as gateway:
        enqueue(gateway, "r1", "r2", "r3")
        register(gateway, upstream_url, "detailed")
        run(gateway, "r2")
        assert ask(gateway).is_success
        gateway.http.post(
            "/api/rollouts/r1/attempt/0/events",
            json={"event_type": "reward", "data": {"value": 1.0}},
        )
        gateway.http.delete("/api/rollouts/r3")
        gateway.http.post("/proxy/pause", json={"reason": "upgrade"})
        before = shown(gateway)
    with running_gateway(settings) as gateway:
        assert shown(gateway) == before
        assert gateway.http.get("/api/rollouts/r3").status_code == 404
        gateway.http.post("/proxy/resume")
        assert ask(gateway).is_success


def test_rewards_of_another_range_are_brought_to_ours(tmp_path: Any, settings: Settings) -> None:
    gateway_settings = settings.gateway.model_copy(update={"lightning_rewards": (-1.0, 1.0)})
    with running_gateway(settings.model_copy(update={"gateway": gateway_settings})) as gateway:
        enqueue(gateway, "r1")
        for value in (0.0, -1, 3, "good", None):
            body = {"event_type": "reward", "data": {"value": value}}
            assert gateway.http.post("/api/rollouts/r1/attempt/0/events", json=body).is_success
        assert [event.payload.value for event in gateway.events(REWARDS, RewardEvent)] == [0.5, 0.0]
        assert len(gateway.http.get("/api/rollouts/r1/events").json()) == 5


def test_only_the_last_tensor_of_a_growing_conversation_is_kept(gateway: Gateway) -> None:
    enqueue(gateway, "r1")

    def call(prompt: list[int], response: list[int]) -> None:
        answer = {"prompt_token_ids": prompt, "choices": [{"token_ids": response}]}
        body = {
            "event_type": "model_request",
            "data": {"response": answer, "routed_experts": "tensor"},
        }
        gateway.http.post("/api/rollouts/r1/attempt/0/events", json=body).raise_for_status()

    call([1], [2])
    call([1, 2, 3], [4])
    call([9], [9])
    events = gateway.http.get("/api/rollouts/r1/events").json()
    assert ["routed_experts" in event["data"] for event in events] == [False, True, True]
    without = gateway.http.get(
        "/api/rollouts/r1/events", params={"include_routed_experts": False}
    ).json()
    assert not any("routed_experts" in event["data"] for event in without)
