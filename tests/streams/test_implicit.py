"""What is said next rewards the answer before it, once, and what is not understood is no reward."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.genai import to_semantic
from schemas.rewards import Reward
from schemas.spans import Attribute, SpanEvent
from streams.processors.implicit import (
    Answers,
    ImplicitConfig,
    ImplicitFeedback,
    ImplicitRule,
    RuleReader,
)
from tests import events

FIRST, SECOND = "00f067aa0ba902b7", "00f067aa0ba902b8"
ASKED = {"role": "user", "content": "how do I sort?"}
ANSWER = {"role": "assistant", "content": "use sorted"}


def call(span_id: str, said: list[dict[str, Any]], answer: str = "use sorted") -> SpanEvent:
    event = events.model_span("r", "helper", answer, span_id)
    attributes = event.payload.attributes | {
        Attribute.INPUT_MESSAGES.value: [to_semantic(m) for m in said]
    }
    return event.model_copy(
        update={"payload": event.payload.model_copy(update={"attributes": attributes})}
    )


def rewards(*calls: SpanEvent, config: ImplicitConfig | None = None) -> list[Reward]:
    processor = ImplicitFeedback(RuleReader((config or ImplicitConfig()).rules))
    state: Answers | None = None
    found: list[Reward] = []
    for offset, event in enumerate(calls):
        outcome = processor.handle(state, event, events.record(event, offset))
        state = processor.decode_state(processor.encode_state(outcome.state or {}))
        found += [output.event.payload for output in outcome.records]
    return found


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ({"role": "user", "content": "Thanks, perfect!"}, 1.0),
        ({"role": "user", "content": "No, that's wrong."}, 0.0),
        ({"role": "tool", "tool_call_id": "c", "content": "Error: no such file"}, 0.0),
    ],
)
def test_the_next_message_rewards_the_answer_before_it(reply: dict[str, Any], value: float) -> None:
    (found,) = rewards(call(FIRST, [ASKED]), call(SECOND, [ASKED, ANSWER, reply], "else"))
    assert (found.target_span_id, found.value, found.source) == (FIRST, value, "rule")


@pytest.mark.parametrize(
    "reply",
    [{"role": "user", "content": "and backwards?"}, {"role": "system", "content": "thanks"}],
)
def test_what_no_rule_understands_is_no_reward(reply: dict[str, Any]) -> None:
    assert rewards(call(FIRST, [ASKED]), call(SECOND, [ASKED, ANSWER, reply], "else")) == []


def test_the_same_words_reward_once_however_often_the_history_is_sent() -> None:
    thanked = [ASKED, ANSWER, {"role": "user", "content": "thanks"}]
    more = [
        *thanked,
        {"role": "assistant", "content": "else"},
        {"role": "user", "content": "and now?"},
    ]
    assert (
        len(
            rewards(
                call(FIRST, [ASKED]), call(SECOND, thanked, "else"), call(SECOND, more, "third")
            )
        )
        == 1
    )


def test_an_answer_of_somebody_else_is_not_rewarded() -> None:
    foreign = [
        ASKED,
        {"role": "assistant", "content": "never said"},
        {"role": "user", "content": "thanks"},
    ]
    assert rewards(call(FIRST, [ASKED]), call(SECOND, foreign)) == []


def test_rules_can_be_ones_own_and_must_be_regular_expressions() -> None:
    config = ImplicitConfig(rules=(ImplicitRule(role="user", pattern="merci", value=0.75),))
    (found,) = rewards(
        call(FIRST, [ASKED]),
        call(SECOND, [ASKED, ANSWER, {"role": "user", "content": "Merci"}]),
        config=config,
    )
    assert found.value == 0.75
    with pytest.raises(ValidationError, match="no regular expression"):
        ImplicitRule(role="user", pattern="(", value=1.0)
