"""Rollouts, rewards and decisions over HTTP: durable when answered, idempotent, refused clearly."""

from collections import Counter
from typing import Any

import pytest

from schemas.decisions import DecisionEvent
from schemas.rewards import RewardEvent
from schemas.rollouts import RolloutEvent
from schemas.topics import DECISIONS, REWARDS, ROLLOUTS
from tests.infra.conftest import Gateway

CANDIDATES = [{"id": "a", "text": "it helps"}, {"id": "b", "text": "it harms"}]


def begin(gateway: Gateway, **more: Any) -> Any:
    answer = gateway.http.post("/everloop/v1/rollouts", json=more)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def decide(gateway: Gateway, rollout: str, /, **more: Any) -> Any:
    body = {
        "rollout_id": rollout,
        "policy": "supervisor-policy",
        "context": "?",
        "candidates": CANDIDATES,
        **more,
    }
    return gateway.http.post("/everloop/v1/decisions", json=body)


def test_a_rollout_is_told_what_it_is_pinned_to_and_begins_once(gateway: Gateway) -> None:
    task = {"id": "t1", "input": {"goal": "?"}, "expected": "yes"}
    first = begin(
        gateway, rollout_id="r1", agent="society", task=task, split="validation", group="arm"
    )
    assert first["rollout_id"] == "r1"
    assert first["checkpoints"]["tiny"] == "v1"
    assert begin(gateway, rollout_id="r1") == first
    created, started = gateway.events(ROLLOUTS, RolloutEvent)
    assert (created.payload.state, started.payload.state) == ("created", "started")
    assert started.payload.task is not None
    assert started.payload.task.id == "t1"
    assert (started.payload.split, started.payload.group) == ("validation", "arm")


def test_a_rollout_without_an_id_gets_one(gateway: Gateway) -> None:
    assert len({begin(gateway)["rollout_id"] for _ in range(3)}) == 3


def test_the_end_of_a_rollout_is_on_the_log_when_it_is_answered(gateway: Gateway) -> None:
    begin(gateway, rollout_id="r1")
    answer = gateway.http.post(
        "/everloop/v1/rollouts/r1/end",
        json={"state": "succeeded", "output": {"decision": "GO"}, "turns": 5},
    )
    assert answer.status_code == 202
    *_, ended = gateway.events(ROLLOUTS, RolloutEvent)
    assert (ended.payload.state, ended.payload.output, ended.payload.turns) == (
        "succeeded",
        {"decision": "GO"},
        5,
    )
    assert ended.event_id == answer.json()["event_id"]


@pytest.mark.parametrize("value", [-0.01, 1.01, "good", None])
def test_a_reward_out_of_range_is_refused_with_its_place(gateway: Gateway, value: Any) -> None:
    answer = gateway.http.post("/everloop/v1/rewards", json={"rollout_id": "r1", "value": value})
    assert answer.status_code == 422
    assert "value" in answer.json()["detail"]
    assert gateway.events(REWARDS, RewardEvent) == []


def test_a_reward_for_a_rollout_nobody_has_seen_is_kept(gateway: Gateway) -> None:
    body = {
        "rollout_id": "not-yet",
        "value": 0.5,
        "criteria": {"novelty": 0.25},
        "source": "human",
        "comment": "nice",
    }
    answer = gateway.http.post("/everloop/v1/rewards", json=body)
    assert answer.status_code == 202
    (event,) = gateway.events(REWARDS, RewardEvent)
    assert event.event_id == answer.json()["event_id"]
    assert (event.payload.value, event.payload.criteria, event.payload.comment) == (
        0.5,
        {"novelty": 0.25},
        "nice",
    )


def test_a_reward_given_twice_with_one_key_is_one_event(gateway: Gateway) -> None:
    body = {"rollout_id": "r1", "value": 0.5, "idempotency_key": "thumb 17 ü"}
    ids = {
        gateway.http.post("/everloop/v1/rewards", json=body).json()["event_id"] for _ in range(3)
    }
    other = gateway.http.post(
        "/everloop/v1/rewards", json=body | {"idempotency_key": "thumb 18"}
    ).json()["event_id"]
    assert len(ids) == 1
    assert {other} != ids
    assert {event.event_id for event in gateway.events(REWARDS, RewardEvent)} == ids | {other}


def test_a_decision_is_drawn_by_its_logged_propensity_and_asked_again_is_the_same(
    gateway: Gateway,
) -> None:
    chosen = Counter(decide(gateway, f"r{number}").json()["choice"] for number in range(200))
    assert 60 < chosen[0] < 140
    first, again = decide(gateway, "r1").json(), decide(gateway, "r1").json()
    assert first["choice"] == again["choice"]
    assert first["propensity"] == 0.5
    events = gateway.events(DECISIONS, DecisionEvent)
    assert len(events) == 202
    assert events[0].payload.probabilities == [0.5, 0.5]
    assert [candidate.id for candidate in events[0].payload.candidates] == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"candidates": []}, 422, "candidates"),
        ({"policy": "nobody"}, 404, "there is no policy 'nobody'; there are: supervisor-policy"),
        ({"policy": "tiny"}, 404, "there is no policy 'tiny'"),
        ({"rollout": "r1"}, 422, "rollout"),
        ({"rollout_id": "no spaces"}, 422, "rollout_id"),
    ],
)
def test_a_decision_that_cannot_be_made_is_refused_with_why(
    gateway: Gateway, change: dict[str, Any], status: int, says: str
) -> None:
    answer = decide(gateway, "r1", **change)
    assert answer.status_code == status
    assert says in answer.json()["detail"]
    assert gateway.events(DECISIONS, DecisionEvent) == []


@pytest.mark.parametrize(
    "path", ["/everloop/v1/rewards", "/everloop/v1/decisions", "/everloop/v1/rollouts"]
)
def test_a_body_that_is_not_json_is_refused(gateway: Gateway, path: str) -> None:
    answer = gateway.http.post(path, content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
