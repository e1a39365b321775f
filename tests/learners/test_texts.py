"""Texts are read the same whether or not they were read before."""

from itertools import chain

import pytest

from learners.bandit.features import slate_of
from learners.bandit.texts import Text, Texts, hash_words, read_texts
from schemas.decisions import Candidate

SAID = ["a plan of 3 steps", "", "退款申请", "a plan of 3 steps", "x" * 500, "12.5 and 7", "\ud800"]


def plain(read: list[Text]) -> list[tuple[list[int], list[int], tuple[tuple[int, float], ...]]]:
    return [(one.words.tolist(), one.pairs.tolist(), one.values) for one in read]


def test_texts_read_together_apart_and_again_are_the_same() -> None:
    apart = list(chain.from_iterable(read_texts([text]) for text in SAID))
    texts = Texts()
    assert plain(apart) == plain(read_texts(SAID)) == plain(texts.read(SAID))
    assert plain(texts.read([*SAID[::-1], "new"]))[:-1] == plain(apart)[::-1]
    assert read_texts([]) == texts.read([]) == []


@pytest.mark.parametrize("most", [0, 1, 10, 1000])
def test_no_more_is_remembered_than_is_allowed(most: int) -> None:
    texts = Texts(most)
    for number in range(50):
        texts.read([f"text {number}", "the same"])
        kept = list(texts._known)
        assert sum(map(len, kept)) == texts._characters <= most
    assert ("the same" in kept) == (most == 1000)


def test_a_word_has_the_feature_that_it_always_had() -> None:
    assert hash_words(["effect", "退款", "#"]).tolist() == [124350, 219248, 8829]


def test_a_slate_is_the_same_when_its_candidates_come_again() -> None:
    candidates = [Candidate(id=str(n), text=text) for n, text in enumerate(SAID[:-1])]
    first, again = slate_of("which?", candidates), slate_of("which?", candidates)
    for name in ("rows", "indices", "values"):
        assert getattr(first.part, name).tolist() == getattr(again.part, name).tolist()
