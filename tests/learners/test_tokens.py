"""Texts in any script give tokens, the same everywhere, and the bandit learns by them."""

from hashlib import sha256
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.bandit import BanditLearner
from learners.bandit.tokens import tokens
from learners.contract import distribution
from schemas.examples import BanditExample, ExampleEvent
from tests import events

WORLDS = {
    "English": ("send the money back", "send another parcel"),
    "German": ("Geld zurück", "Ersatz schicken"),
    "Russian": ("вернуть деньги", "отправить другую посылку"),
    "Arabic": ("أعد المال", "أرسل طردا آخر"),
    "Hindi": ("पैसे वापस करें", "दूसरा पार्सल भेजें"),
    "Korean": ("환불해 주세요", "교환해 주세요"),
    "Chinese": ("退款", "换货"),
    "Japanese": ("返金する", "交換する"),
    "Thai": ("คืนเงิน", "ส่งใหม่"),
    "digits": ("plan 7", "plan 12"),
    "decimals": ("dose 0.5", "dose 1.5"),
    "emoji": ("👍", "👎"),
}


def in_context(event: ExampleEvent, context: str) -> ExampleEvent:
    body = event.payload.body
    assert isinstance(body, BanditExample)
    body = body.model_copy(
        update={"decision": body.decision.model_copy(update={"context": context})}
    )
    return event.model_copy(update={"payload": event.payload.model_copy(update={"body": body})})


@pytest.mark.parametrize("texts", WORLDS.values(), ids=list(WORLDS))
def test_what_earns_is_learned_in_any_script(texts: tuple[str, str]) -> None:
    learner, random = BanditLearner("p"), Random(1)
    state = learner.initial()
    for _ in range(200):
        choice = random.randrange(2)
        state = learner.fold(state, events.example(list(texts), choice, float(choice == 0)))
    good, bad = distribution(learner.policy(state), events.decision_of(list(texts), 0))
    assert good > 0.95 > bad


@pytest.mark.parametrize("contexts", [("客户要退款", "客户要换货"), ("клиент 1", "клиент 2")])
def test_which_is_best_may_depend_on_a_context_in_any_script(contexts: tuple[str, str]) -> None:
    learner, random = BanditLearner("p"), Random(1)
    state, options = learner.initial(), ["第一", "第二"]
    for _ in range(400):
        which, choice = random.randrange(2), random.randrange(2)
        event = events.example(options, choice, float(choice == which))
        state = learner.fold(state, in_context(event, contexts[which]))
    for place, context in enumerate(contexts):
        chances = learner.policy(state).probabilities(
            context, events.decision_of(options, 0).candidates
        )
        assert chances[place] > 0.9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Aspirin reduces pain, in adults.", ["aspirin", "reduces", "pain", "in", "adults"]),
        ("don't", ["don", "t"]),
        ("p<0.03 at 95%", ["p", "<", "#", "0.03", "at", "#", "95", "%"]),
        ("GPT-4.5", ["gpt", "#", "4.5"]),
        ("退款。", ["退款"]),
        ("我要退款", ["我要", "要退", "退款"]),
        ("好", ["好"]),
        ("用 Python 3 退款", ["用", "python", "#", "3", "退款"]),
        ("वापस करें", ["वापस", "करें"]),
        ("👍🏽 ≤ ❤️", ["👍", "🏽", "≤", "❤"]),
        ("...", []),
        ("", []),
    ],
)
def test_tokens_are_what_a_reader_would_call_words(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("STRASSE", "straße"),
        ("ДЕНЬГИ", "деньги"),
        ("ΣΟΦΟΣ", "σοφος"),
        ("zurück", "zuru\u0308ck"),
        ("환불", "환불"),
        ("ＡＢＣ１２", "abc12"),
        ("ｶﾞｽ", "ガス"),
        ("٣٫٥", "3.5"),
        ("๑๒", "12"),
        ("ﬁne\u00adtune", "finetune"),
        ("❤\ufe0f", "❤"),
    ],
)
def test_texts_that_differ_in_case_or_form_only_give_the_same_tokens(one: str, other: str) -> None:
    assert tokens(one) == tokens(other) != []


@given(st.text(st.characters(max_codepoint=127)))
def test_the_short_way_for_ascii_gives_what_the_general_way_does(text: str) -> None:
    assert [*tokens(text), "é"] == tokens(f"{text} é")


@given(
    st.text(
        st.sampled_from("Aa1.% \nёЖй、。あがポ漢字한국")
        | st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5)
    )
)
def test_the_short_way_for_common_scripts_gives_what_the_general_way_does(text: str) -> None:
    assert [*tokens(text), "é"] == tokens(f"{text} é")


@given(st.text())
def test_any_text_has_tokens_none_of_them_empty_or_blank(text: str) -> None:
    assert all(token and token == token.strip() for token in tokens(text))


def test_every_character_gives_the_same_tokens_on_every_machine_and_python() -> None:
    """A recorded hash: when it changes, so must `FEATURE_VERSION`."""
    digest = sha256()
    for first in (*range(0, 0x20000, 0x100), *range(0xE0000, 0xE0200, 0x100)):
        text = " ".join(map(chr, range(first, first + 0x100)))
        digest.update("\n".join(tokens(text)).encode())
    assert digest.hexdigest() == "b194867939ffa06307263c4a997ae25c7cdef5ea89b2d26625778d780bcd07d1"
