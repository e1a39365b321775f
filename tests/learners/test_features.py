"""What the policy reads: words of any script, numbers, names, and the whole context."""

from pathlib import Path
from random import Random

import orjson
import pytest

from learners.bandit import BanditLearner, BanditPolicy
from learners.bandit.features import (
    FEATURE_VERSION,
    TEXT_CHARACTERS,
    features,
    identity_of,
    names_of,
    slate_of,
    words_of,
)
from learners.bandit.features_before import TOKENS
from learners.bandit.vocabulary import MOST_KEPT, Vocabulary
from schemas.decisions import Candidate
from tests import events

KEPT = Path(__file__).parent / "policies"
TOPICS = ("sql", "poem", "tax", "recipe", "law", "medicine")
MODELS = [Candidate(id=name, text=f"the {name} model") for name in ("small", "large", "coder")]


@pytest.mark.parametrize("version", sorted(TOKENS))
def test_a_kept_policy_of_an_earlier_version_chooses_as_it_did(version: int) -> None:
    kept = orjson.loads((KEPT / f"v{version}.json").read_bytes())
    policy = BanditPolicy.from_bytes(orjson.dumps(kept["policy"]))
    candidates = [Candidate(**candidate) for candidate in kept["candidates"]]
    assert policy.feature_version == version < FEATURE_VERSION
    chances = policy.probabilities(kept["context"], candidates, "default")
    assert chances == pytest.approx(kept["probabilities"], abs=1e-12)
    assert orjson.loads(policy.to_bytes()) == kept["policy"]
    assert set().union(*policy.features(kept["context"], candidates, "default")) <= set(
        policy.names_of(kept["context"], candidates, "default")
    )


@pytest.mark.parametrize(
    "texts",
    [
        ("gpt-4", "gpt-5"),
        ("llama 8b", "llama 70b"),
        ("claude-3-5-sonnet", "claude-4-5-sonnet"),
        ("temperature 0.0", "temperature 1.0"),
        ("ответь кратко", "подумай шаг за шагом"),
        ("简短回答", "逐步思考"),
    ],
)
def test_candidates_that_differ_in_digits_or_in_any_script_are_told_apart(
    texts: tuple[str, str],
) -> None:
    learner = BanditLearner("p")
    state = learner.initial()
    for number in range(60):
        state = learner.fold(state, events.example(list(texts), number % 2, float(number % 2)))
    worse, better = learner.policy(state).probabilities("", [Candidate(text=t) for t in texts])
    assert worse < 0.05 < 0.9 < better


def test_numbers_in_a_text_count_by_their_size_and_the_word_before() -> None:
    names = names_of("", [Candidate(text="temperature 0.5")])
    index = next(index for index, name in names.items() if name == "number after temperature")
    cold, warm, hot = (
        features("", [Candidate(text=f"temperature {value}")])[0][index] for value in (0, 0.5, 9e99)
    )
    assert cold < warm < hot <= 1.0


def test_candidates_of_the_same_text_are_told_apart_by_their_names() -> None:
    learner = BanditLearner("p")
    state = learner.initial()
    for number in range(60):
        event = events.example(["a model", "a model"], number % 2, float(number % 2))
        body = event.payload.body
        named = [Candidate(id=name, text="a model") for name in ("first", "second")]
        decision = body.decision.model_copy(update={"candidates": named})  # type: ignore[union-attr]
        payload = event.payload.model_copy(
            update={"body": body.model_copy(update={"decision": decision})}
        )
        state = learner.fold(state, event.model_copy(update={"payload": payload}))
    worse, better = learner.policy(state).probabilities("which is best?", named)
    assert worse < 0.05 < 0.9 < better


def test_one_telling_word_among_forty_others_is_found() -> None:
    """The four longest words of the context, which version 3 read, hardly ever held it."""
    random = Random(7)
    others = ["".join(random.choices("abcdefgh", k=random.randint(3, 9))) for _ in range(400)]
    best_of = random.choices(range(3), k=len(TOPICS))
    learner = BanditLearner("p")
    state = learner.initial()
    earned = []
    for _ in range(1500):
        topic = random.randrange(len(TOPICS))
        words = [*random.sample(others, 40), TOPICS[topic]]
        random.shuffle(words)
        context = " ".join(words)
        chances = learner.policy(state).probabilities(context, MODELS)
        (choice,) = random.choices(range(3), chances)
        best = choice == best_of[topic]
        earned.append(best)
        reward = float(random.random() < (0.9 if best else 0.1))
        event = events.example([model.text for model in MODELS], choice, reward)
        decision = event.payload.body.decision.model_copy(  # type: ignore[union-attr]
            update={"candidates": MODELS, "context": context}
        )
        body = event.payload.body.model_copy(update={"decision": decision})
        payload = event.payload.model_copy(update={"body": body})
        state = learner.fold(state, event.model_copy(update={"payload": payload}))
    assert sum(earned[-500:]) / 500 > 0.8


def test_a_huge_number_does_not_drown_the_other_features() -> None:
    learner = BanditLearner("p")
    state = learner.initial()
    random = Random(3)
    for _ in range(200):
        sizes = [{"window": random.choice([8_192.0, 1e9]), "load": 5e12} for _ in range(2)]
        choice = random.randrange(2)
        event = events.example(["the right one", "a wrong one"], choice, float(choice == 0))
        shown = [
            Candidate(text=text, numbers=numbers)
            for text, numbers in zip(("the right one", "a wrong one"), sizes, strict=True)
        ]
        decision = event.payload.body.decision.model_copy(  # type: ignore[union-attr]
            update={"candidates": shown}
        )
        body = event.payload.body.model_copy(update={"decision": decision})
        payload = event.payload.model_copy(update={"body": body})
        state = learner.fold(state, event.model_copy(update={"payload": payload}))
    for found in features("", shown):
        assert max(map(abs, found.values())) <= 9.0
    assert learner.policy(state).probabilities("", shown)[0] > 0.9


def test_texts_that_differ_only_beyond_what_is_read_still_differ() -> None:
    long = "word " * TEXT_CHARACTERS
    first, second = features("", [Candidate(text=f"{long} one"), Candidate(text=f"{long} two")])
    assert first != second


def test_a_slate_of_a_thousand_long_texts_has_bounded_features() -> None:
    text = " ".join(f"word{number}" for number in range(2_000))
    slate = slate_of(text, [Candidate(id=str(n), text=f"{n} {text}") for n in range(1_000)])
    assert len(slate.part.rows) < 600_000


def test_the_vocabulary_is_bounded_and_keeps_what_is_met_often() -> None:
    vocabulary = Vocabulary()
    for number in range(3_000):
        vocabulary.take([*words_of("often met"), *range(number * 8, number * 8 + 8)], number)
    assert len(vocabulary.words.items()) <= MOST_KEPT
    often, rare = vocabulary.words.of(words_of("often")[0]), vocabulary.words.of(23_999)
    assert often > 1_000 > rare


def test_a_name_counts_once_it_was_chosen_three_times() -> None:
    candidate, vocabulary = Candidate(id="small"), Vocabulary()
    for times in range(5):
        (found,) = features("hi", [candidate], vocabulary=vocabulary)
        assert (identity_of(candidate) in found) == (times >= 3)
        vocabulary.take(words_of("hi"), identity_of(candidate))


def test_the_vocabulary_travels_with_state_and_policy() -> None:
    learner = BanditLearner("p")
    state = learner.initial()
    for number in range(20):
        state = learner.fold(state, events.example(["one", "two"], number % 2, 0.5))
    again = learner.decode(learner.encode(state))
    assert again.vocabulary == state.vocabulary
    policy = learner.policy(state)
    assert BanditPolicy.from_bytes(policy.to_bytes()).vocabulary == state.vocabulary
    state = learner.fold(state, events.example(["one", "two"], 0, 0.5))
    assert policy.vocabulary != state.vocabulary
