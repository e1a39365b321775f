"""A policy chooses which model, or which prompt, answers a call; the decision is logged like any
other.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, cast

import pytest

from infra.config.settings import Settings, load_settings
from infra.gateway.calls.choices import decide, make_decision
from infra.gateway.http.access import Caller
from infra.gateway.http.context import CallContext
from infra.gateway.records.redaction import RedactionConfig, Redactor
from infra.gateway.routes.table import RoutingTable
from infra.gateway.settings import ModelSettings
from infra.gateway.state.services import Services
from infra.installation.routes import publish_initial_routes
from infra.runtime.errors import ConfigError
from learners.bandit import MEDIA_TYPE, BanditPolicy
from learners.bandit.features import features
from learners.bandit.policy import Weights
from learners.bandit.regressor import BlockBayesianRegressor
from learners.policies import PolicyLoader
from schemas.decisions import Candidate, DecisionEvent
from schemas.routes import Choice, Option, Route, RouteTarget
from schemas.spans import Attribute, SpanEvent
from schemas.topics import DECISIONS, SPANS
from streams.processors.promotion_state import baseline_route
from streams.storage.artifacts import ArtifactStore
from tests.infra.conftest import Gateway, model_route, publish, running_gateway
from tests.infra.upstream import Upstream
from tests.waiting import eventually

OPTIONS = [
    Option(name="terse", model="tiny", instructions="Answer in one word.", cost=0.1),
    Option(name="plain", model="plain", text="the plain model", numbers={"size": 0.5}),
]
ROUTER = Route(
    name="assistant",
    kind="choice",
    targets=[RouteTarget(version="v1")],
    choice=Choice(policy="router-policy", options=OPTIONS),
)


@pytest.fixture
def router(settings: Settings, upstream_url: str) -> Iterator[Gateway]:
    models = [model_route(name, upstream_url) for name in ("tiny", "plain")]
    publish(settings.log_path, *models, baseline_route("router-policy"), ROUTER)
    with running_gateway(settings) as running:
        yield running


def test_each_call_takes_one_of_the_options_and_the_decision_is_on_the_log(
    router: Gateway, upstream: Upstream
) -> None:
    for number in range(20):
        assert router.chat("assistant", {"x-everloop-rollout-id": f"r{number}"}).is_success
    decisions = router.soon(DECISIONS, DecisionEvent, 20)
    spans = router.soon(SPANS, SpanEvent, 20)
    taken = Counter(decision.payload.choice for decision in decisions)
    asked = Counter(body["model"] for body in upstream.asked)
    assert taken[0] == asked["tiny"]
    assert taken[1] == asked["plain"]
    assert min(taken.values()) > 2
    first = decisions[0].payload
    assert (first.policy, first.policy_version, first.context) == ("router-policy", "uniform", "hi")
    assert [candidate.id for candidate in first.candidates] == ["terse", "plain"]
    assert (first.candidates[0].cost, first.candidates[1].numbers) == (0.1, {"size": 0.5})
    by_rollout = {decision.rollout_id: OPTIONS[decision.payload.choice] for decision in decisions}
    for span in spans:
        option = by_rollout[span.rollout_id]
        assert span.payload.attributes[Attribute.REQUEST_MODEL] == option.model
        assert span.payload.attributes[Attribute.COST] == 0.0  # free, which is not unknown
        told = str(span.payload.attributes[Attribute.INPUT_MESSAGES])
        assert ("one word" in told) == (option.name == "terse")
    for body in upstream.asked:
        assert (body["messages"][0]["content"] == "Answer in one word.") == (
            body["model"] == "tiny"
        )


def test_asked_again_the_same_call_takes_the_same_option(
    router: Gateway, upstream: Upstream
) -> None:
    for _ in range(5):
        router.chat("assistant", {"x-everloop-rollout-id": "same"})
    assert len({body["model"] for body in upstream.asked}) == 1


def test_the_policy_that_is_promoted_chooses(
    router: Gateway, upstream: Upstream, settings: Settings
) -> None:
    regressor = BlockBayesianRegressor()
    shown = [
        Candidate(text=option.text or option.name, numbers=option.numbers) for option in OPTIONS
    ]
    terse, plain = features("hi", shown)
    for _ in range(100):
        regressor.learn_one(terse, 0.1).learn_one(plain, 0.9)
    artifact = BanditPolicy(Weights.of(regressor), "squarecb", 1000.0, 0.01).to_bytes()
    stored = ArtifactStore(settings.artifacts_dir).put(artifact, MEDIA_TYPE)
    taught = RouteTarget(version="taught", artifact=stored)
    publish(
        settings.log_path, baseline_route("router-policy").model_copy(update={"targets": [taught]})
    )

    def versions() -> bool:
        routes = router.http.get("/everloop/v1/routes").json()["routes"]
        return any(target["version"] == "taught" for route in routes for target in route["targets"])

    eventually(versions, "the taught policy")
    for number in range(20):
        router.chat("assistant", {"x-everloop-rollout-id": f"late{number}"})
    assert Counter(body["model"] for body in upstream.asked)["plain"] >= 18


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        (
            "/v1/completions",
            {"prompt": "once"},
            lambda body: body["prompt"].startswith("Answer in one word.\n\n"),
        ),
        (
            "/v1/completions",
            {"prompt": ["once"]},
            lambda body: body["prompt"][0].startswith("Answer in one word."),
        ),
        ("/v1/completions", {"prompt": [1, 2]}, lambda body: body["prompt"] == [1, 2]),
        (
            "/v1/responses",
            {"input": "hi"},
            lambda body: body["instructions"] == "Answer in one word.",
        ),
        (
            "/v1/responses",
            {"input": "hi", "instructions": "Go."},
            lambda body: body["instructions"].endswith("Go."),
        ),
        ("/v1/embeddings", {"input": "hi"}, lambda body: body["input"] == "hi"),
    ],
)
def test_instructions_are_put_where_each_api_has_them(  # type: ignore[no-untyped-def]
    settings: Settings,
    upstream: Upstream,
    upstream_url: str,
    path: str,
    body: dict[str, object],
    place,
) -> None:
    only = ROUTER.model_copy(update={"choice": Choice(policy="router-policy", options=OPTIONS[:1])})
    publish(
        settings.log_path, model_route("tiny", upstream_url), baseline_route("router-policy"), only
    )
    with running_gateway(settings) as gateway:
        assert gateway.http.post(path, json={"model": "assistant", **body}).is_success
    assert place(upstream.asked[0])


def test_a_choice_is_listed_as_a_model_and_can_be_set_over_http(router: Gateway) -> None:
    assert "assistant" in [model["id"] for model in router.http.get("/v1/models").json()["data"]]
    wanted = {"kind": "choice", "targets": [{"version": "v2"}], "reason": "try"}
    refused = router.http.put("/everloop/v1/routes/assistant", json=wanted)
    assert (refused.status_code, "options to choose among" in refused.json()["detail"]) == (
        400,
        True,
    )
    option = {"name": "one", "model": "plain"}
    choice = {"policy": "nobody's-policy", "options": [option]}
    bad = router.http.put("/everloop/v1/routes/assistant", json=wanted | {"choice": choice})
    assert bad.status_code == 422
    set_ = router.http.put(
        "/everloop/v1/routes/assistant", json=wanted | {"choice": choice | {"policy": "nobodys"}}
    )
    assert set_.json()["choice"]["options"][0]["model"] == "plain"


def test_a_choice_by_a_policy_that_is_not_there_is_a_404(
    settings: Settings, upstream_url: str
) -> None:
    publish(
        settings.log_path,
        model_route("tiny", upstream_url),
        model_route("plain", upstream_url),
        ROUTER,
    )
    with running_gateway(settings) as gateway:
        answer = gateway.chat("assistant")
        assert answer.status_code == 404
        assert "router-policy" in answer.json()["detail"]


def test_choices_are_configured_and_their_policies_learned(settings: Settings) -> None:
    configured = Settings(
        data_dir=settings.data_dir,
        choices={
            "assistant": Choice(policy="router", options=[Option(name="a", model="supervisor_llm")])
        },
        models={"supervisor_llm": ModelSettings(base_url="http://127.0.0.1:9/v1", model="m")},
    )
    assert configured.policies == ("router",)
    publish_initial_routes(configured, {})
    with running_gateway(configured) as gateway:
        routes = {
            route["name"]: route
            for route in gateway.http.get("/everloop/v1/routes").json()["routes"]
        }
    assert routes["assistant"]["kind"] == "choice"
    assert routes["router"]["kind"] == "policy"


def test_what_was_learned_serves_on_when_the_installation_starts_again(settings: Settings) -> None:
    def serving_at(port: int) -> Settings:
        model = ModelSettings(base_url=f"http://127.0.0.1:{port}/v1", model="m")
        names = ("supervisor_llm", "review_board_llm")
        return settings.model_copy(update={"models": dict.fromkeys(names, model)})

    publish_initial_routes(serving_at(9), {})
    learned = model_route("supervisor_llm", "http://127.0.0.1:9", "adapter-1")
    publish(settings.log_path, learned)
    publish_initial_routes(serving_at(10), {})
    with running_gateway(settings) as gateway:
        routes = {
            route["name"]: route
            for route in gateway.http.get("/everloop/v1/routes").json()["routes"]
        }
    assert [target["version"] for target in routes["supervisor_llm"]["targets"]] == ["adapter-1"]
    assert (
        routes["review_board_llm"]["targets"][0]["endpoint"]["base_url"] == "http://127.0.0.1:10/v1"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[choices.a]\npolicy = 'p'\noptions = [{name = 'x', model = 'nowhere'}]",
            "there is no such model",
        ),
        (
            "[choices.tiny]\npolicy = 'p'\noptions = [{name = 'x', model = 'tiny'}]\n"
            "[models.tiny]\nbase_url = 'http://127.0.0.1:9/v1'\nmodel = 'm'",
            "a model and a choice",
        ),
    ],
)
def test_a_choice_that_leads_nowhere_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    (tmp_path / "everloop.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=says):
        load_settings()


class Where:
    """A policy that notes in which threads it was asked."""

    media_type = "application/vnd.where"
    feature_version = 0
    threads: ClassVar[list[int]] = []

    @classmethod
    def load(cls, content: bytes) -> "Where":
        return cls()

    def probabilities(
        self, context: str, candidates: Sequence[Candidate], tenant: str = ""
    ) -> list[float]:
        self.threads.append(threading.get_ident())
        return [1 / len(candidates)] * len(candidates)


async def test_a_large_decision_is_made_outside_of_the_event_loop(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    table = RoutingTable(store, PolicyLoader([Where]))
    target = RouteTarget(version="v1", artifact=store.put(b"", Where.media_type))
    table.apply(Route(name="p", kind="policy", targets=[target]))
    services = cast(Services, SimpleNamespace(routing=table, redactor=Redactor(RedactionConfig())))
    call = CallContext(Caller(), "r", None, "0" * 32, None, False, "0" * 16)
    small = [Candidate(text="a few words"), Candidate(text="others")]
    large = [Candidate(text="many words " * 2_000), *small]
    for slate in (small, large):
        event = await decide(services, call, "r", "p", "which?", slate)
        pinned, _ = table.resolve("p", "policy", call.key("r"))
        here = make_decision(services.redactor, pinned, call, "r", "p", "which?", slate)
        assert event == here.model_copy(update={"event_id": event.event_id, "time": event.time})
    loop = threading.get_ident()
    assert [thread == loop for thread in Where.threads] == [True, True, False, True]
