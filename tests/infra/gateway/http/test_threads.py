"""Work on large requests is done beside the event loop, and comes to the same."""

import asyncio
import threading
from typing import Any

import pytest

from infra.config.settings import Settings
from infra.gateway.http.threads import LARGE_BYTES, run_aside
from schemas.rollouts import Recorded, RolloutEvent, RolloutState
from schemas.serialization import decode, encode_json
from schemas.spans import Attribute, SpanEvent
from schemas.topics import ROLLOUTS, SPANS
from tests import events
from tests.infra.conftest import Gateway, metrics_of, model_route, publish, running_gateway


@pytest.mark.parametrize(("size", "aside"), [(LARGE_BYTES - 1, False), (LARGE_BYTES, True)])
def test_only_work_on_much_goes_to_a_thread(size: int, aside: bool) -> None:
    worked = asyncio.run(run_aside(size, threading.current_thread))
    assert (worked is not threading.main_thread()) == aside


def test_what_a_thread_raises_is_raised() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        asyncio.run(run_aside(LARGE_BYTES, fail))


@pytest.mark.parametrize("value", [1.5, 2**80, "ß", None, [{"a": [True]}]])
def test_an_event_is_the_same_however_it_is_encoded(value: Any) -> None:
    event = events.model_span("r", "n", "answer")
    said = event.payload.attributes | {"x": value}
    event = event.model_copy(
        update={"payload": event.payload.model_copy(update={"attributes": said})}
    )
    assert decode(SpanEvent, encode_json(event)) == event


@pytest.mark.parametrize("stream", [False, True])
def test_a_large_call_is_recorded_whole_and_counts_at_the_end_of_its_rollout(
    gateway: Gateway, stream: bool
) -> None:
    messages = [{"role": "user", "content": "word " * (LARGE_BYTES // 5)}]
    headers = {"x-everloop-rollout-id": "r1"}
    assert gateway.chat("plain", headers, messages=messages, stream=stream).is_success
    end = gateway.http.post("/everloop/v1/rollouts/r1/end", json={"state": "succeeded"})
    end.raise_for_status()
    (span,) = gateway.soon(SPANS, SpanEvent)
    recorded: Any = span.payload.attributes[Attribute.INPUT_MESSAGES]
    assert recorded[0]["parts"][0]["content"] == messages[0]["content"]
    ended = [
        event
        for event in gateway.events(ROLLOUTS, RolloutEvent)
        if event.payload.state is RolloutState.SUCCEEDED
    ]
    assert ended[0].payload.recorded == Recorded(spans=1)


def test_a_large_call_that_continues_another_is_of_its_rollout(
    settings: Settings, upstream_url: str
) -> None:
    text = "word " * (LARGE_BYTES // 5)
    opening: list[dict[str, Any]] = [{"role": "user", "content": text}]
    answer = {"role": "assistant", "content": "hello there"}
    publish(settings.log_path, model_route("plain", upstream_url))
    # A conversation must not end while the first reader process starts.
    patient = settings.gateway.model_copy(update={"conversation_idle_s": 300.0})
    with running_gateway(settings.model_copy(update={"gateway": patient})) as gateway:
        first = gateway.chat("plain", messages=opening)
        more = [*opening, answer, {"role": "user", "content": "?"}]
        second = gateway.chat("plain", messages=more)
    name = "x-everloop-rollout-id"
    assert first.headers[name] == second.headers[name]


def test_a_body_of_brackets_is_refused_without_reading_them_all(gateway: Gateway) -> None:
    body = b'{"a":' + b"[" * 90_000
    answer = gateway.http.post("/v1/chat/completions", content=body)
    assert (answer.status_code, "nested" in answer.json()["detail"]) == (400, True)


def test_the_longest_delay_is_a_metric(gateway: Gateway) -> None:
    text = gateway.http.get("/metrics").text
    ((_, delay),) = metrics_of(text, "everloop_event_loop_delay_seconds")
    assert delay >= 0.0
    assert metrics_of(text, "everloop_event_loop_long_delays_total")
