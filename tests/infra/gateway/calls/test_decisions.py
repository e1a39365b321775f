"""A decision is the same wherever it is made."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from infra.gateway.calls.decisions import MadeDecision, asker_of, decide
from infra.gateway.http.access import Caller
from infra.gateway.http.context import CallContext
from infra.gateway.http.documents import Document, Elsewhere, Here
from infra.gateway.http.problems import ProblemError
from infra.gateway.http.readers import Readers
from infra.gateway.records.redaction import RedactionConfig, Redactor
from infra.gateway.routes.table import RoutingTable
from infra.gateway.routes.targets import Target
from learners.bandit import MEDIA_TYPE, BanditPolicy
from learners.bandit.features import features
from learners.bandit.policy import Weights
from learners.bandit.regressor import BlockBayesianRegressor
from learners.policies import PolicyLoader
from schemas.checkpoints import Artifact
from schemas.decisions import Candidate, DecisionEvent
from schemas.routes import Route, RouteTarget
from schemas.serialization import decode
from schemas.topics import DECISIONS
from streams.storage.artifacts import ArtifactStore
from tests.infra.conftest import Gateway

CALL = CallContext(Caller(), "r", None, "0" * 32, None, False, "0" * 16)
TEXTS = [f"the plan {number} of ann@example.com " * 20 for number in range(50)]
BODY: dict[str, Any] = {
    "rollout_id": "r",
    "policy": "p",
    "context": "which?",
    "candidates": [{"id": str(n), "text": text} for n, text in enumerate(TEXTS)],
}


class Local:
    """A policy that always takes the first."""

    media_type = "application/vnd.local"
    feature_version = 0

    @classmethod
    def load(cls, content: bytes) -> "Local":
        return cls()

    def probabilities(
        self, context: str, candidates: Sequence[Candidate], tenant: str = ""
    ) -> list[float]:
        return [1.0, *[0.0] * (len(candidates) - 1)]


@pytest.fixture
def readers() -> Iterator[Readers]:
    pool = Readers()
    yield pool
    pool.close()


def taught() -> bytes:
    regressor = BlockBayesianRegressor()
    good, bad = features("which?", [Candidate(text=text) for text in TEXTS[:2]])
    for _ in range(50):
        regressor.learn_one(good, 0.9).learn_one(bad, 0.1)
    return BanditPolicy(Weights.of(regressor), "squarecb", 1000.0, 0.01).to_bytes()


def target_of(artifact: Artifact | None, store: ArtifactStore, loader: PolicyLoader) -> Target:
    table = RoutingTable(store, loader)
    targets = [RouteTarget(version="v1", artifact=artifact)]
    table.apply(Route(name="p", kind="policy", targets=targets))
    target, _ = table.resolve("p", "policy", "default/r")
    return target


async def decided(document: Document, target: Target) -> tuple[DecisionEvent, dict[str, Any]]:
    redactor = Redactor(RedactionConfig(builtin=("email",)))
    made = await decide(document, redactor, target, CALL)
    assert isinstance(made, MadeDecision)
    event = decode(DecisionEvent, made.value)
    assert made.event_id == event.event_id
    return event, orjson.loads(made.answer)


@pytest.mark.parametrize("kind", ["baseline", "bandit", "local"])
async def test_readers_decide_as_the_gateway_does(
    tmp_path: Path, readers: Readers, kind: str
) -> None:
    class Hidden(Local):
        """A class that only this function knows."""

    store, artifact, loader = ArtifactStore(tmp_path), None, PolicyLoader()
    if kind == "bandit":
        artifact = store.put(taught(), MEDIA_TYPE)
    elif kind == "local":
        artifact, loader = store.put(b"", Hidden.media_type), PolicyLoader([Hidden])
    target = target_of(artifact, store, loader)
    assert target.portable == (kind != "local")
    here, answer = await decided(Here(BODY, 0), target)
    elsewhere, other = await decided(Elsewhere(orjson.dumps(BODY), readers), target)
    assert here.payload == elsewhere.payload
    assert here.payload.policy_version == "v1"
    assert "ann@" not in here.model_dump_json()
    assert answer | {"decision_id": ""} == other | {"decision_id": ""}


async def test_where_a_reader_cannot_load_the_policy_the_baseline_decides(
    tmp_path: Path, readers: Readers
) -> None:
    store = ArtifactStore(tmp_path)
    artifact = store.put(taught(), MEDIA_TYPE)
    target = target_of(artifact, store, PolicyLoader())
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.unlink()
    event, _ = await decided(Elsewhere(orjson.dumps(BODY), readers), target)
    assert (event.payload.policy_version, event.payload.propensity) == ("uniform", 1 / 50)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"candidates": []}, "body.candidates: "),
        ({"candidates": [{"text": 1}]}, "body.candidates.0.text: "),
        ({"more": 1}, "body.more: "),
    ],
)
async def test_what_is_no_decision_is_refused_in_the_same_words(
    tmp_path: Path, readers: Readers, change: dict[str, Any], says: str
) -> None:
    body = BODY | change
    target = target_of(None, ArtifactStore(tmp_path), PolicyLoader())
    said = []
    for document in (Here(body, 0), Elsewhere(orjson.dumps(body), readers)):
        with pytest.raises(ProblemError) as raised:
            await decided(document, target)
        said.append((raised.value.status_code, raised.value.detail))
    assert said[0] == said[1]
    assert (said[0][0], said[0][1].startswith(says)) == (422, True)
    with pytest.raises(ProblemError, match="policy"):
        asker_of({"rollout_id": "r"})


def test_a_large_decision_is_durable_when_it_is_answered(gateway: Gateway) -> None:
    body = BODY | {"policy": "supervisor-policy"}
    answer = gateway.http.post("/everloop/v1/decisions", json=body)
    assert answer.is_success
    (event,) = gateway.events(DECISIONS, DecisionEvent)
    assert event.event_id == answer.json()["decision_id"]
    assert event.payload.choice == answer.json()["choice"]
    assert [candidate.text for candidate in event.payload.candidates] == TEXTS
    again = gateway.http.post("/everloop/v1/decisions", json=body).json()
    assert again["choice"] == answer.json()["choice"]
