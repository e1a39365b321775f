"""Conversations are found by what was said in them, and leave nothing behind when they have
ended.
"""

from typing import Any

import pytest

from infra.gateway.state.conversations import Conversations, Messages, Transcript

ASKED: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
ANSWER: dict[str, Any] = {"role": "assistant", "content": "hello"}


def transcript(messages: Messages | None, key: str | None = None, **more: Any) -> Transcript:
    return Transcript("default", key, {"messages": messages, **more}, messages)


def said(
    conversations: Conversations,
    messages: Messages,
    answer_id: str | None = None,
    key: str | None = None,
    **more: Any,
) -> str:
    """Make a call that is answered; return its rollout."""
    request = transcript(messages, key, **more)
    conversation = conversations.join("default", None, request.continues)
    conversations.note_answer(conversation, request.after([ANSWER], answer_id), failed=False)
    return conversation.rollout_id


def more(text: str) -> Messages:
    """Return what continues the answer."""
    return [*ASKED, ANSWER, {"role": "user", "content": text}]


def test_what_continues_an_answer_is_the_same_and_what_has_ended_is_forgotten() -> None:
    conversations = Conversations(idle_s=0.0)
    first = said(conversations, ASKED, "a1")
    assert said(conversations, more("more")) == first
    assert [conversation.rollout_id for conversation in conversations.take_ended()] == [first]
    assert conversations._said == {}
    assert conversations._open == {}
    assert said(conversations, more("more")) != first


def test_a_call_under_way_keeps_its_conversation_open() -> None:
    conversations = Conversations(idle_s=0.0)
    busy = conversations.join("default", None, None)
    assert conversations.take_ended() == []
    conversations.note_answer(busy, [], failed=True)
    (ended,) = conversations.take_ended()
    assert ended.failed


def test_a_call_that_was_refused_leaves_no_conversation() -> None:
    conversations = Conversations(idle_s=0.0)
    conversations.withdraw_call(conversations.join("default", None, None))
    assert conversations.take_ended() == []


def test_the_oldest_answers_are_forgotten_when_there_are_too_many() -> None:
    conversations = Conversations(idle_s=100.0, most=2)
    for name in ("a", "b", "c"):
        said(conversations, [{"role": "user", "content": name}])
    assert len(conversations._said) == 2


def test_a_trace_is_one_and_its_spans_keep_it_open() -> None:
    conversations = Conversations(idle_s=0.0)
    conversations.note_span("default", "a" * 32)
    assert conversations.join("default", "a" * 32, None).rollout_id == "a" * 32
    assert conversations.join("other", "a" * 32, None).tenant == "other"


def test_a_conversation_that_is_ended_during_a_call_stays_ended() -> None:
    conversations = Conversations(idle_s=0.0)
    busy = conversations.join("default", None, None)
    conversations.forget("default", busy.rollout_id)
    conversations.note_answer(busy, transcript(ASKED).after([ANSWER], "a1"), failed=False)
    assert conversations._said == {}
    assert conversations.take_ended() == []


def test_a_call_of_an_ended_conversation_ends_no_other_of_its_trace() -> None:
    conversations = Conversations(idle_s=0.0)
    trace = "0af7651916cd43dd8448eb211c80319c"
    first = conversations.join("default", trace, None)
    conversations.forget("default", trace)
    second = conversations.join("default", trace, None)
    conversations.withdraw_call(first)
    conversations.note_answer(second, [], failed=False)
    assert conversations.take_ended() == [second]


def test_a_call_that_two_conversations_may_continue_begins_a_new_one() -> None:
    conversations = Conversations(idle_s=100.0)
    first, second = said(conversations, ASKED), said(conversations, ASKED)
    third = said(conversations, more("again"))
    assert len({first, second, third}) == 3
    last = [*more("again"), ANSWER, {"role": "user", "content": "thanks"}]
    assert said(conversations, last) == third, "what only one has said is that one's"


def test_an_ended_conversation_makes_nothing_ambiguous() -> None:
    conversations = Conversations(idle_s=100.0)
    first, second = said(conversations, ASKED), said(conversations, ASKED)
    conversations.forget("default", first)
    assert said(conversations, more("again")) == second


def test_a_call_that_is_made_twice_in_one_conversation_is_not_ambiguous() -> None:
    conversations = Conversations(idle_s=100.0)
    first = said(conversations, ASKED)
    assert {said(conversations, more("again")) for _ in range(2)} == {first}
    last = [*more("again"), ANSWER, {"role": "user", "content": "thanks"}]
    assert said(conversations, last) == first


@pytest.mark.parametrize("name", ["user", "safety_identifier", "prompt_cache_key", "metadata"])
def test_who_says_it_is_part_of_a_conversation(name: str) -> None:
    conversations = Conversations(idle_s=100.0)
    whose: list[Any] = [
        {"of": str(number)} if name == "metadata" else str(number) for number in range(5)
    ]
    begun = [said(conversations, ASKED, None, None, **{name: one}) for one in whose]
    assert len(set(begun)) == 5
    assert [said(conversations, more("again"), None, None, **{name: one}) for one in whose] == begun


def test_the_key_is_part_of_a_conversation() -> None:
    conversations = Conversations(idle_s=100.0)
    begun = {key: said(conversations, ASKED, "a1", key) for key in ("k1", "k2")}
    assert {key: said(conversations, more("again"), None, key) for key in ("k1", "k2")} == begun
    named = {"previous_response_id": "a1"}
    assert {key: said(conversations, ASKED, None, key, **named) for key in begun} == begun


def test_an_earlier_answer_that_is_named_counts_more_than_what_is_repeated() -> None:
    conversations = Conversations(idle_s=100.0)
    first = said(conversations, ASKED, "a1")
    other: Messages = [{"role": "user", "content": "something else"}]
    assert said(conversations, other, previous_response_id="a1", metadata={"turn": "2"}) == first
    assert said(conversations, more("again"), previous_response_id="unknown") != first


def test_the_order_of_members_does_not_matter() -> None:
    conversations = Conversations(idle_s=100.0)
    parts = [{"type": "text", "text": "hi"}]
    swapped = [{"text": "hi", "type": "text"}]
    first = said(conversations, [{"role": "user", "content": parts}], metadata={"a": "1", "b": "2"})
    again: Messages = [
        {"content": swapped, "role": "user"},
        ANSWER,
        {"role": "user", "content": "more"},
    ]
    assert said(conversations, again, metadata={"b": "2", "a": "1"}) == first
