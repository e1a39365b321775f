"""The clients people have: OpenAI's own, LangChain's, curl; each API is passed on whole and
recorded.
"""

import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import OpenAI
from pydantic import SecretStr

from infra.config.settings import Settings
from schemas.rollouts import RolloutEvent, RolloutState
from schemas.routes import Choice, Option, Route, RouteTarget
from schemas.spans import Attribute, SpanEvent
from schemas.topics import ROLLOUTS, SPANS
from streams.processors.promotion_state import baseline_route
from tests.infra.conftest import Gateway, model_route, publish, running_gateway
from tests.infra.upstream import Upstream

MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(gateway: Gateway) -> Iterator[OpenAI]:
    headers = {"x-everloop-rollout-id": "r1"}
    with OpenAI(
        base_url=f"{gateway.url}/v1", api_key="any", default_headers=headers, max_retries=0
    ) as client:
        yield client


def the_span(gateway: Gateway) -> SpanEvent:
    (span,) = gateway.soon(SPANS, SpanEvent)
    return span


def texts(span: SpanEvent, attribute: Attribute) -> str:
    return orjson.dumps(span.payload.attributes.get(attribute)).decode()


def test_text_completions_are_passed_on_and_recorded(gateway: Gateway, client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="hello", max_tokens=1, logprobs=1)
    assert answer.choices[0].text == " world"
    span = the_span(gateway)
    said = span.payload.attributes
    assert (said[Attribute.OPERATION], said[Attribute.OPENAI_API]) == (
        "text_completion",
        "completions",
    )
    assert (said[Attribute.RESPONSE_TOKEN_IDS], said[Attribute.RESPONSE_LOGPROBS]) == ([4], [-0.5])
    assert "hello" in texts(span, Attribute.INPUT_MESSAGES)
    assert "world" in texts(span, Attribute.OUTPUT_MESSAGES)


@pytest.mark.parametrize("stream", [False, True])
def test_responses_are_passed_on_and_recorded(
    gateway: Gateway, client: OpenAI, stream: bool
) -> None:
    asked: Any = [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]
    if stream:
        events = list(
            client.responses.create(model="tiny", input=asked, instructions="be kind", stream=True)
        )
        assert events[-1].type == "response.completed"
    else:
        assert (
            client.responses.create(model="tiny", input=asked, instructions="be kind").output_text
            == "hello there"
        )
    span = the_span(gateway)
    said = span.payload.attributes
    assert (said[Attribute.OPERATION], said[Attribute.OPENAI_API]) == ("chat", "responses")
    assert (said[Attribute.INPUT_TOKENS], said[Attribute.OUTPUT_TOKENS]) == (7, 2)
    assert said[Attribute.STREAMED] is stream
    assert span.payload.status == "ok"
    assert "be kind" in texts(span, Attribute.INPUT_MESSAGES)
    recorded = texts(span, Attribute.OUTPUT_MESSAGES)
    assert "hello there" in recorded
    assert "call_1" in recorded


def test_embeddings_are_passed_on_and_what_they_cost_recorded(
    gateway: Gateway, client: OpenAI
) -> None:
    answer = client.embeddings.create(model="tiny", input="hi", encoding_format="float")
    assert answer.data[0].embedding == [0.5, -0.5]
    said = the_span(gateway).payload.attributes
    assert (said[Attribute.OPERATION], said[Attribute.INPUT_TOKENS]) == ("embeddings", 2)


def test_models_are_listed_and_shown(gateway: Gateway, client: OpenAI) -> None:
    assert "tiny" in [model.id for model in client.models.list()]
    assert client.models.retrieve("tiny").id == "tiny"
    assert gateway.http.get("/v1/models/nobody").status_code == 404
    assert gateway.http.get("/v1/models/supervisor-policy").status_code == 404


def test_a_stream_with_usage_tools_and_json_schema(
    gateway: Gateway, client: OpenAI, upstream: Upstream
) -> None:
    schema: Any = {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": {"type": "object"}},
    }
    tools: Any = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    image: Any = [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}],
        }
    ]
    with client.chat.completions.create(
        model="tiny",
        messages=image,
        tools=tools,
        response_format=schema,
        n=1,
        logprobs=True,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert any(chunk.usage for chunk in chunks)
    assert upstream.asked[0]["response_format"] == schema
    assert upstream.asked[0]["messages"] == image
    span = the_span(gateway)
    assert "image_url" in texts(span, Attribute.INPUT_MESSAGES)
    assert span.payload.attributes[Attribute.TOOL_DEFINITIONS] == tools


def test_langchain_talks_and_streams_and_embeds(gateway: Gateway) -> None:
    headers = {"x-everloop-rollout-id": "r1"}
    key = SecretStr("any")
    chat = ChatOpenAI(
        model="tiny",
        base_url=f"{gateway.url}/v1",
        api_key=key,
        default_headers=headers,
        max_retries=0,
    )
    assert chat.invoke("hi").content == "hello there"
    streamed = list(chat.stream("hi"))
    assert "".join(str(chunk.content) for chunk in streamed) == "hello there"
    embeddings = OpenAIEmbeddings(
        model="tiny",
        openai_api_base=f"{gateway.url}/v1",
        openai_api_key=key,
        default_headers=headers,
        check_embedding_ctx_length=False,
    )
    assert embeddings.embed_query("hi") == [0.5, -0.5]
    operations = [
        s.payload.attributes[Attribute.OPERATION] for s in gateway.soon(SPANS, SpanEvent, 3)
    ]
    assert operations == ["chat", "chat", "embeddings"]


def test_curl_at_a_rollouts_own_path(gateway: Gateway) -> None:
    assert shutil.which("curl"), "curl is needed for this test"
    command = ["curl", "-sS", "--fail", f"{gateway.url}/rollout/r7/v1/chat/completions"]
    body = '{"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}'
    answer = subprocess.run([*command, "-d", body], capture_output=True, check=True, timeout=30)
    assert orjson.loads(answer.stdout)["choices"][0]["message"]["content"] == "hello there"
    assert the_span(gateway).rollout_id == "r7"


def test_a_rollouts_path_knows_every_api_and_no_other(gateway: Gateway) -> None:
    assert gateway.http.get("/rollout/r7/v1/models").json()["object"] == "list"
    missing = gateway.http.post("/rollout/r7/v1/audio", json={})
    assert missing.status_code == 404
    assert "/embeddings" in missing.json()["detail"]
    assert gateway.http.post("/rollout/..%20/v1/embeddings", json={}).status_code == 400


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("completions", {"model": "tiny"}, "prompt"),
        ("completions", {"model": "tiny", "prompt": 3}, "prompt"),
        ("responses", {"input": "hi"}, "model"),
        ("responses", {"model": "tiny", "input": 3}, "input"),
        ("embeddings", {"model": "tiny"}, "input"),
        ("embeddings", {"model": "supervisor-policy", "input": "hi"}, "there is no model"),
    ],
)
def test_a_request_of_no_api_is_refused(
    gateway: Gateway, path: str, body: dict[str, Any], says: str
) -> None:
    answer = gateway.http.post(f"/v1/{path}", json=body)
    assert answer.status_code in (400, 404)
    assert says in answer.json()["detail"]


def test_a_conversation_is_one_rollout_and_another_is_another(gateway: Gateway) -> None:
    def ask(messages: list[dict[str, Any]]) -> str:
        body = {"model": "tiny", "messages": messages}
        return str(
            gateway.http.post("/v1/chat/completions", json=body).headers["x-everloop-rollout-id"]
        )

    first = ask([{"role": "user", "content": "hi"}])
    # clients add members of their own to what was answered
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": "hello there",
        "refusal": None,
        "annotations": [],
    }
    second = ask([{"role": "user", "content": "hi"}, answer, {"role": "user", "content": "more"}])
    other = ask(
        [
            {"role": "user", "content": "hi"},
            answer | {"content": "never said"},
            {"role": "user", "content": "?"},
        ]
    )
    assert first == second
    assert other != first
    ended = [
        e
        for e in gateway.soon(ROLLOUTS, RolloutEvent, 4)
        if e.payload.state == RolloutState.SUCCEEDED
    ]
    assert {(event.rollout_id, event.payload.turns) for event in ended} == {(first, 2), (other, 1)}
    recorded = next(event.payload.recorded for event in ended if event.rollout_id == first)
    assert recorded is not None
    assert recorded.spans == 2
    assert (
        ask([{"role": "user", "content": "hi"}, answer, {"role": "user", "content": "later"}])
        != first
    )


@pytest.fixture
def patient(settings: Settings, upstream_url: str) -> Iterator[Gateway]:
    """A gateway whose conversations do not end while a test lasts."""
    option = Option(name="terse", model="tiny", instructions="Answer in one word.")
    choice = Choice(policy="router-policy", options=[option])
    target = RouteTarget(version="v1")
    assistant = Route(name="assistant", kind="choice", targets=[target], choice=choice)
    routes = [model_route("tiny", upstream_url), baseline_route("router-policy"), assistant]
    publish(settings.log_path, *routes)
    gateway = settings.gateway.model_copy(update={"conversation_idle_s": 600.0})
    with running_gateway(settings.model_copy(update={"gateway": gateway})) as running:
        yield running


@pytest.mark.parametrize("name", ["user", "safety_identifier", "prompt_cache_key"])
def test_five_users_with_one_opening_have_five_rollouts_each_with_its_own_second_call(
    patient: Gateway, name: str
) -> None:
    users = [f"user-{number}" for number in range(5)]
    opening: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    answer = {"role": "assistant", "content": "hello there"}
    more = [*opening, answer, {"role": "user", "content": "more"}]
    rollouts: dict[str, list[str]] = {}
    for messages in (opening, more):
        for user in users:
            body = {"model": "tiny", "messages": messages, name: user}
            headers = patient.http.post("/v1/chat/completions", json=body).headers
            rollouts.setdefault(user, []).append(headers["x-everloop-rollout-id"])
    assert all(first == second for first, second in rollouts.values())
    assert len({first for first, _ in rollouts.values()}) == 5


def test_users_that_nothing_tells_apart_share_no_rollout(patient: Gateway) -> None:
    opening: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    answer = {"role": "assistant", "content": "hello there"}
    more = [*opening, answer, {"role": "user", "content": "more"}]
    rollouts = []
    for messages in [opening] * 5 + [more] * 5:
        body = {"model": "tiny", "messages": messages}
        headers = patient.http.post("/v1/chat/completions", json=body).headers
        rollouts.append(headers["x-everloop-rollout-id"])
    assert len(set(rollouts)) == 10


def test_a_conversation_goes_on_behind_a_choice_that_adds_instructions(patient: Gateway) -> None:
    opening: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    answer = {"role": "assistant", "content": "hello there"}
    first = patient.chat("assistant", messages=opening)
    more = [*opening, answer, {"role": "user", "content": "more"}]
    second = patient.chat("assistant", messages=more)
    name = "x-everloop-rollout-id"
    assert first.headers[name] == second.headers[name]


def test_a_call_of_no_model_begins_no_rollout(gateway: Gateway) -> None:
    assert gateway.chat("nobody").status_code == 404
    assert gateway.chat().is_success
    ended = [
        e
        for e in gateway.soon(ROLLOUTS, RolloutEvent, 2)
        if e.payload.state != RolloutState.STARTED
    ]
    assert [event.payload.state for event in ended] == [RolloutState.SUCCEEDED]


def test_a_response_that_names_an_earlier_one_continues_it(gateway: Gateway) -> None:
    def ask(**more: Any) -> Any:
        return gateway.http.post("/v1/responses", json={"model": "tiny", "input": "hi", **more})

    first = ask()
    second = ask(previous_response_id=first.json()["id"])
    assert first.headers["x-everloop-rollout-id"] == second.headers["x-everloop-rollout-id"]
    assert ask().headers["x-everloop-rollout-id"] != first.headers["x-everloop-rollout-id"]


def test_calls_of_one_trace_are_one_rollout_with_its_id(gateway: Gateway) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    for span in ("b7ad6b7169203331", "b7ad6b7169203332"):
        answer = gateway.chat(headers={"traceparent": f"00-{trace}-{span}-01"})
        assert answer.headers["x-everloop-rollout-id"] == trace
    assert {event.rollout_id for event in gateway.soon(SPANS, SpanEvent, 2)} == {trace}
