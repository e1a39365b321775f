"""The client against a real gateway, and against servers that fail."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from everloop_client import AsyncClient, Client, GatewayError
from everloop_client import calls as client_calls
from everloop_client.langchain import SpanAttribute
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from openai import OpenAI

from infra.config.settings import Settings
from infra.control.keys import create_key
from infra.gateway.settings import GatewaySettings
from schemas.decisions import DecisionEvent
from schemas.keys import Scope
from schemas.rewards import RewardEvent, RewardSource
from schemas.rollouts import RolloutEvent, RolloutState
from schemas.spans import Attribute, SpanEvent
from schemas.topics import DECISIONS, REWARDS, ROLLOUTS, SPANS
from streams.processors.promotion_state import baseline_route
from streams.storage.embedded.log import EmbeddedLog
from tests.conftest import serving
from tests.infra.conftest import Gateway, model_route, publish, running_gateway
from tests.infra.upstream import Upstream

POLICY = "chooser"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    settings = Settings(data_dir=tmp_path / "data")
    with serving(Upstream().app) as url:
        publish(settings.log_path, model_route("plain", url), baseline_route(POLICY))
        with running_gateway(settings) as running:
            yield running


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Client]:
    with Client(gateway.url) as opened:
        yield opened


def test_a_rollout_has_its_calls_its_choice_its_reward_and_its_output(
    client: Client, gateway: Gateway
) -> None:
    with client.rollout(task="refunds", input="broken", expected="refund", agent="desk") as rollout:
        with OpenAI(base_url=rollout.base_url, api_key="any") as model:
            message: Any = {"role": "user", "content": "hi"}
            model.chat.completions.create(model="plain", messages=[message])
        gateway.chat("plain", headers=rollout.headers)
        choice = rollout.decide(POLICY, "broken", ["Refund it.", {"id": "b", "text": "Replace."}])
        given = rollout.reward(0.8, criteria={"kind": 0.5}, comment="good", source="human")
        rollout.output = {"done": True}
        rollout.turns = 2
    states = [event.payload for event in gateway.events(ROLLOUTS, RolloutEvent)]
    assert [state.state for state in states][:2] == ["created", "started"]
    (end,) = [state for state in states if state.state == "succeeded"]
    assert states[0].task is not None
    assert (states[0].task.id, states[0].task.expected) == ("refunds", "refund")
    assert (states[0].agent, states[0].split_chosen, states[0].group) == ("desk", False, "default")
    assert (end.output, end.turns) == ({"done": True}, 2)
    assert [span.rollout_id for span in gateway.soon(SPANS, SpanEvent, 2)] == [rollout.id] * 2
    (decision,) = gateway.events(DECISIONS, DecisionEvent)
    assert (choice.decision_id, choice.propensity) == (decision.event_id, 0.5)
    assert choice.index == decision.payload.choice
    assert choice.version == decision.payload.policy_version
    assert choice.candidate == ["Refund it.", {"id": "b", "text": "Replace."}][choice.index]
    (reward,) = gateway.events(REWARDS, RewardEvent)
    assert (reward.event_id, reward.payload.source) == (given, RewardSource.HUMAN)
    assert reward.payload.criteria == {"kind": 0.5}


def test_an_exception_ends_the_rollout_as_failed_and_goes_on(
    client: Client, gateway: Gateway
) -> None:
    with pytest.raises(KeyError), client.rollout(id="r"):
        raise KeyError("lost")
    last = gateway.events(ROLLOUTS, RolloutEvent)[-1].payload
    assert (last.state, last.error) == (RolloutState.FAILED, "KeyError: 'lost'")


def test_an_exception_is_not_hidden_by_a_gateway_that_is_gone(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyError) as caught, client.rollout(id="r") as rollout:
        monkeypatch.setattr(client_calls, "TRIES", 1)
        rollout._client = Client("http://127.0.0.1:9")
        raise KeyError("lost")
    assert "rollout r could not be ended" in caught.value.__notes__[0]


def test_rewards_come_days_later_are_corrected_and_taken_back(
    client: Client, gateway: Gateway
) -> None:
    with client.rollout() as rollout:
        pass
    first = client.reward(rollout.id, 0.2)
    second = client.reward(rollout.id, 0.4, supersedes=first)
    taken_back = client.retract(rollout.id, second)
    assert client.retract(rollout.id, second) == taken_back
    rewards = [event.payload for event in gateway.events(REWARDS, RewardEvent)]
    assert [reward.supersedes for reward in rewards] == [None, first, second, second]
    assert [reward.retracted for reward in rewards] == [False, False, True, True]


def test_rollouts_of_one_input_are_attempts_at_one_task(client: Client, gateway: Gateway) -> None:
    for question in ("one", "one", "two"):
        with client.rollout(input={"question": question}):
            pass
    tasks = [
        event.payload.task.id
        for event in gateway.events(ROLLOUTS, RolloutEvent)
        if event.payload.task is not None and event.payload.state is RolloutState.CREATED
    ]
    assert tasks[0] == tasks[1] != tasks[2]


@pytest.mark.parametrize("name", ["team/ticket/4711", "a/v1/b", "a/../b"])
def test_an_id_with_slashes_names_its_rollout_in_the_base_url(
    client: Client, gateway: Gateway, name: str
) -> None:
    message: Any = {"role": "user", "content": "hi"}
    with (
        client.rollout(id=name) as rollout,
        OpenAI(base_url=rollout.base_url, api_key="any") as model,
    ):
        model.chat.completions.create(model="plain", messages=[message])
        assert [one.id for one in model.models.list()] == ["plain"]
    assert [span.rollout_id for span in gateway.soon(SPANS, SpanEvent, 1)] == [name]
    (*_, ended) = gateway.events(ROLLOUTS, RolloutEvent)
    assert (ended.rollout_id, ended.payload.state) == (name, RolloutState.SUCCEEDED)


def test_an_expected_output_needs_a_task(client: Client) -> None:
    with pytest.raises(ValueError, match="name its `task`"):
        client.rollout(expected="x")


async def test_the_asynchronous_client_does_the_same(gateway: Gateway) -> None:
    async with AsyncClient(gateway.url) as client:
        async with client.rollout(id="a") as rollout:
            choice = await rollout.decide(POLICY, "", ["x", "y"])
            given = await rollout.reward(1.0)
            await rollout.retract(given)
            rollout.output = choice.index
        with pytest.raises(RuntimeError):
            async with client.rollout(id="b"):
                raise RuntimeError("lost")
    ends = {
        event.rollout_id: event.payload.state for event in gateway.events(ROLLOUTS, RolloutEvent)
    }
    assert ends == {"a": RolloutState.SUCCEEDED, "b": RolloutState.FAILED}
    assert len(gateway.events(REWARDS, RewardEvent)) == 2


def test_a_refusal_carries_status_and_detail(client: Client) -> None:
    with pytest.raises(GatewayError, match="less than or equal to 1") as caught:
        client.reward("r", 7.0)
    assert caught.value.status == 422


def test_a_key_is_sent_where_the_gateway_asks_for_one(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", gateway=GatewaySettings(keys="required"))
    with EmbeddedLog(settings.log_path) as log:
        key, _ = create_key(log, "tester", "acme", [Scope.AGENT, Scope.FEEDBACK])
    with running_gateway(settings) as gateway:
        with Client(gateway.url, key) as client, client.rollout() as rollout:
            rollout.reward(1)
        with Client(gateway.url) as stranger, pytest.raises(GatewayError) as caught:
            stranger.reward("r", 1)
        assert caught.value.status == 401
        assert {event.tenant for event in gateway.events(REWARDS, RewardEvent)} == {"acme"}


class Unsteady:
    """A gateway that fails a few times; it notes each body that it gets."""

    def __init__(self, failures: int, status: int = 503) -> None:
        self.bodies: list[Any] = []
        self.app = FastAPI()
        calls = count(1)

        @self.app.post("/{path:path}")
        async def answer(request: Request) -> JSONResponse:
            self.bodies.append(await request.json())
            if next(calls) <= failures:
                return JSONResponse({"detail": "the disk is full"}, status)
            return JSONResponse({"event_id": "e"})


def test_a_reward_is_given_again_with_the_same_key_when_the_log_is_away() -> None:
    unsteady = Unsteady(failures=2)
    with serving(unsteady.app) as url, Client(url) as client:
        assert client.reward("r", 1) == "e"
        assert client.reward("r", 1) == "e"
    keys = [body["idempotency_key"] for body in unsteady.bodies]
    assert keys[0] == keys[1] == keys[2] != keys[3]


async def test_the_asynchronous_client_asks_again_too() -> None:
    unsteady = Unsteady(failures=2)
    with serving(unsteady.app) as url:
        async with AsyncClient(url) as client:
            assert await client.reward("r", 1) == "e"
    assert len(unsteady.bodies) == 3


@pytest.mark.parametrize(("status", "asked"), [(503, client_calls.TRIES), (500, 1), (429, 1)])
def test_only_what_was_not_recorded_is_asked_again_and_not_for_ever(
    status: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_calls, "FIRST_PAUSE_S", 0.001)
    unsteady = Unsteady(failures=100, status=status)
    with (
        serving(unsteady.app) as url,
        Client(url) as client,
        pytest.raises(GatewayError, match="the disk is full") as caught,
    ):
        client.reward("r", 1)
    assert (caught.value.status, len(unsteady.bodies)) == (status, asked)


def test_what_may_have_been_done_is_repeated_only_where_that_does_no_harm() -> None:
    lost, refused = httpx.ReadTimeout("late"), httpx.ConnectError("refused")
    decision = client_calls.decide("r", "p", "", ["x"])
    reward = client_calls.retract("r", "e")
    assert client_calls.pause(decision, 1, lost) is None
    assert client_calls.pause(decision, 1, refused) is not None
    assert client_calls.pause(reward, 1, lost) is not None


def test_a_gateway_that_is_not_there_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_calls, "FIRST_PAUSE_S", 0.001)
    with (
        Client("http://127.0.0.1:9") as client,
        pytest.raises(GatewayError, match="no answer from the gateway at http://127") as caught,
    ):
        client.reward("r", 1)
    assert caught.value.status is None


def test_another_server_is_an_error_that_says_so() -> None:
    app = FastAPI()

    @app.post("/{path:path}")
    async def answer() -> JSONResponse:
        return JSONResponse(["hello"])

    with (
        serving(app) as url,
        Client(url) as client,
        pytest.raises(GatewayError, match="does not answer as Everloop's gateway does"),
    ):
        client.reward("r", 1)


def test_the_client_names_spans_as_the_events_do() -> None:
    assert {one.name: one.value for one in SpanAttribute}.items() <= {
        one.name: one.value for one in Attribute
    }.items()
