"""Conversations are found by what was said in them, and leave nothing behind when they have
ended.
"""

from typing import Any

from infra.gateway.state.conversations import Conversations

ASKED: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
ANSWER: dict[str, Any] = {"role": "assistant", "content": "hello"}


def said(
    conversations: Conversations, messages: list[dict[str, Any]], answer_id: str | None = None
) -> str:
    conversation = conversations.join("default", None, messages)
    conversations.answered(conversation, messages, [ANSWER], answer_id, failed=False)
    return conversation.rollout_id


def test_what_continues_an_answer_is_the_same_and_what_has_ended_is_forgotten() -> None:
    conversations = Conversations(idle_s=0.0)
    first = said(conversations, ASKED, "a1")
    more = [*ASKED, ANSWER, {"role": "user", "content": "more"}]
    assert said(conversations, more) == first
    assert [conversation.rollout_id for conversation in conversations.ended()] == [first]
    assert conversations._said == {}
    assert conversations._open == {}
    assert said(conversations, more) != first


def test_a_call_under_way_keeps_its_conversation_open() -> None:
    conversations = Conversations(idle_s=0.0)
    busy = conversations.join("default", None, ASKED)
    assert conversations.ended() == []
    conversations.answered(busy, ASKED, [ANSWER], None, failed=True)
    (ended,) = conversations.ended()
    assert ended.failed


def test_a_call_that_was_refused_leaves_no_conversation() -> None:
    conversations = Conversations(idle_s=0.0)
    conversations.refused(conversations.join("default", None, ASKED))
    assert conversations.ended() == []


def test_the_oldest_answers_are_forgotten_when_there_are_too_many() -> None:
    conversations = Conversations(idle_s=100.0, most=2)
    for name in ("a", "b", "c"):
        said(conversations, [{"role": "user", "content": name}])
    assert len(conversations._said) == 2


def test_a_trace_is_one_and_its_spans_keep_it_open() -> None:
    conversations = Conversations(idle_s=0.0)
    conversations.heard("default", "a" * 32)
    assert conversations.join("default", "a" * 32, None).rollout_id == "a" * 32
    assert conversations.join("other", "a" * 32, None).tenant == "other"


def test_a_conversation_that_is_ended_during_a_call_stays_ended() -> None:
    conversations = Conversations(idle_s=0.0)
    busy = conversations.join("default", None, ASKED)
    conversations.forget("default", busy.rollout_id)
    conversations.answered(busy, ASKED, [ANSWER], "a1", failed=False)
    assert conversations._said == {}
    assert conversations.ended() == []


def test_a_call_of_an_ended_conversation_ends_no_other_of_its_trace() -> None:
    conversations = Conversations(idle_s=0.0)
    trace = "0af7651916cd43dd8448eb211c80319c"
    first = conversations.join("default", trace, ASKED)
    conversations.forget("default", trace)
    second = conversations.join("default", trace, ASKED)
    conversations.refused(first)
    conversations.answered(second, ASKED, [ANSWER], None, failed=False)
    assert conversations.ended() == [second]
