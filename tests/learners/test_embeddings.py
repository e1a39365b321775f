"""Embeddings of contexts: the same everywhere, read by policies that say so, and by no others."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import orjson
import pytest
import wordllama
from pydantic import ValidationError

from learners.bandit import BanditConfig, BanditLearner, BanditPolicy, embeddings
from learners.bandit.embeddings import DIMENSIONS, embedding
from learners.bandit.features import EMBEDDED_VERSION
from schemas.decisions import Candidate
from tests import events

MONEY = (
    "I want my money back",
    "please refund the purchase",
    "give me a full reimbursement",
    "the amount was charged twice",
)
PARCEL = (
    "the package has not arrived",
    "where is my delivery",
    "my shipment is late",
    "the courier lost the box",
)
UNSEEN = {"billing": "undo that payment", "shipping": "parcels delayed again"}


CANDIDATES = [Candidate(id=f"junior-{place}", text=name) for place, name in enumerate(UNSEEN)]


def taught(learner: BanditLearner) -> BanditPolicy:
    """Return the policy after forty contexts in which it shows who answers what."""
    state = learner.initial()
    for number in range(40):
        for texts, best in ((MONEY, "billing"), (PARCEL, "shipping")):
            for place, name in enumerate(UNSEEN):
                event = events.example(list(UNSEEN), place, float(name == best))
                body = event.payload.body
                decision = body.decision.model_copy(  # type: ignore[union-attr]
                    update={"context": texts[number % len(texts)]}
                )
                body = body.model_copy(update={"decision": decision})
                payload = event.payload.model_copy(update={"body": body})
                state = learner.fold(state, event.model_copy(update={"payload": payload}))
    return learner.policy(state)


def test_a_text_has_the_embedding_that_the_model_itself_gives_it() -> None:
    folder = Path(wordllama.__file__).parent
    model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    for text in (*MONEY, "Das Paket kommt zu spät", "退款"):
        whole = model.embed(text)[0][:DIMENSIONS]
        found = embedding(text)
        assert found == pytest.approx(whole / np.linalg.norm(whole), abs=1e-5)
        assert float(found @ found) == pytest.approx(1.0)
    assert not embedding("").any()


def test_what_means_the_same_is_chosen_alike_though_no_word_is_the_same() -> None:
    policy = taught(BanditLearner("p", BanditConfig(embeddings=True)))
    blind = taught(BanditLearner("p"))
    for place, context in enumerate(UNSEEN.values()):
        chosen = policy.probabilities(context, CANDIDATES)[place]
        assert chosen > 0.9
        assert chosen > blind.probabilities(context, CANDIDATES)[place]


def test_a_policy_that_reads_embeddings_is_the_same_after_it_was_stored() -> None:
    policy = taught(BanditLearner("p", BanditConfig(embeddings=True)))
    stored = BanditPolicy.from_bytes(policy.to_bytes())
    assert stored.feature_version == EMBEDDED_VERSION
    assert stored.to_bytes() == policy.to_bytes()
    names = stored.names_of(MONEY[0], CANDIDATES)
    assert "meaning 0 × candidate junior-0" in names.values()
    (read, _) = stored.features(MONEY[0], CANDIDATES)
    assert set(read) <= set(names)


def test_a_policy_of_another_model_is_refused_and_says_which() -> None:
    policy = taught(BanditLearner("p", BanditConfig(embeddings=True)))
    document = orjson.loads(policy.to_bytes()) | {"embeddings": "other 1.0"}
    with pytest.raises(ValueError, match=r"reads embeddings of other 1\.0; here they are of word"):
        BanditPolicy.from_bytes(orjson.dumps(document))


def test_without_the_extra_the_setting_is_refused_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(embeddings, "version", missing)
    with pytest.raises(ValidationError, match=r"install everloop\[embeddings\]"):
        BanditConfig(embeddings=True)
    monkeypatch.setattr(embeddings, "version", lambda _: "0.3.0")
    with pytest.raises(ValidationError, match=r"found 0\.3\.0"):
        BanditConfig(embeddings=True)
    assert not BanditConfig().embeddings
