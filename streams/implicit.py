"""Implicit feedback: what a user or a tool says next tells how good the answer before it was.

A model call that continues a conversation holds the earlier answer and what was said to it. Rules read that: thanks and
complaints of users, errors of tools. What they do not understand is no reward.
"""

import re
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, ClassVar, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.envelope import AnyEvent, UnitInterval
from schemas.rewards import Reward, RewardEvent, RewardSource
from schemas.spans import Attribute, SpanEvent
from schemas.topics import REWARDS, SPANS, Topic
from streams.processor import Outcome, Processor, output_id
from streams.records import Outgoing, Record

ANSWERS_REMEMBERED = 64

Answers = dict[str, str]
"""Fingerprint of an answer to the id of the span that gave it, the newest last."""


class ImplicitRule(BaseModel):
    """What it means when a message matches.

    Attributes:
        role: whose messages are read.
        pattern: regular expression that is searched for, case aside.
        value: the reward of the answer before the message.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str = Field(pattern="^(user|tool)$")
    pattern: str
    value: UnitInterval

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"implicit rule {self.pattern!r} is no regular expression: {error}") from error
        return self


DEFAULT_RULES = (
    ImplicitRule(role="tool", pattern=r"^\s*(?:\{\"?error|error\b|traceback|exception\b)", value=0.0),
    ImplicitRule(
        role="user",
        pattern=r"\b(?:that|this|you|it)(?:'?s|'?re| is| are) (?:wrong|incorrect|not (?:right|what i))",
        value=0.0,
    ),
    ImplicitRule(
        role="user",
        pattern=r"^\s*no[,.! ]|\btry again\b|\bnot helpful\b|\bdoes(?:n'?t| not) work",
        value=0.0,
    ),
    ImplicitRule(
        role="user",
        pattern=r"\bthank(?:s| you)\b|\bperfect\b|\bexactly what i\b|\bit works\b",
        value=1.0,
    ),
)
"""The first rule that matches counts."""


class ImplicitConfig(BaseModel):
    """How the next message is read.

    Attributes:
        enabled: off by default: a word of thanks is a weak sign.
        rules: tried in order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = False
    rules: tuple[ImplicitRule, ...] = DEFAULT_RULES


class ImplicitFeedback(Processor[Answers]):
    """Rewards the span whose answer the next call of its conversation praises or complains about, once."""

    name = "implicit"
    topics: ClassVar[tuple[Topic, ...]] = (SPANS,)

    def __init__(self, config: ImplicitConfig) -> None:
        self._rules = [(rule.role, re.compile(rule.pattern, re.IGNORECASE), rule.value) for rule in config.rules]

    def handle(self, state: Answers | None, event: AnyEvent, source: Record) -> Outcome[Answers]:
        """Read what a call says to earlier answers, and remember its own."""
        assert isinstance(event, SpanEvent)  # noqa: S101 - the topic holds nothing else
        answers = dict(state or {})
        outputs = []
        for index, (span_id, value, said) in enumerate(self._read(answers, event)):
            payload = Reward(
                value=value,
                source=RewardSource.RULE,
                grader="implicit@1",
                target_span_id=span_id,
                comment=said[:500],
            )
            reward = RewardEvent(
                event_id=output_id(self, source, event.time, index),
                time=event.time,
                tenant=event.tenant,
                rollout_id=event.rollout_id,
                trace_id=event.trace_id,
                payload=payload,
            )
            outputs.append(Outgoing.of(REWARDS, event.rollout_key, reward))
        for message in _messages(event, Attribute.OUTPUT_MESSAGES):
            answers[_fingerprint(message)] = event.span_id
        kept = dict(list(answers.items())[-ANSWERS_REMEMBERED:])
        return Outcome(tuple(outputs), kept or None)

    def encode_state(self, state: Answers) -> bytes:
        """Return the answers as JSON."""
        return orjson.dumps(state)

    def decode_state(self, value: bytes) -> Answers:
        """Return the answers from JSON."""
        answers: Answers = orjson.loads(value)
        return answers

    def _read(self, answers: Answers, event: SpanEvent) -> Iterator[tuple[str, float, str]]:
        """Yield span id, reward and the words for each remembered answer that was replied to; forget it then."""
        messages = _messages(event, Attribute.INPUT_MESSAGES)
        for number, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            span_id = answers.get(_fingerprint(message))
            for reply in messages[number + 1 :] if span_id is not None else ():
                if reply.get("role") == "assistant":
                    break
                value = self._value(str(reply.get("role")), text := _text(reply))
                if value is not None and span_id is not None:
                    del answers[_fingerprint(message)]
                    yield span_id, value, text
                    break

    def _value(self, role: str, text: str) -> float | None:
        return next((value for of, pattern, value in self._rules if of == role and pattern.search(text)), None)


def _messages(event: SpanEvent, attribute: Attribute) -> list[dict[str, Any]]:
    found = event.payload.attributes.get(attribute)
    return [message for message in found if isinstance(message, dict)] if isinstance(found, list) else []


def _text(message: dict[str, Any]) -> str:
    """Return the words of a message of the GenAI conventions, tool results included."""
    parts = message.get("parts")
    found = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "\n".join(str(part.get("content", part.get("response", ""))) for part in found)


def _fingerprint(message: dict[str, Any]) -> str:
    """Return what tells an answer from others: its words and the calls in it."""
    parts = message.get("parts")
    said = [
        (part.get("type"), part.get("content"), part.get("id"), part.get("name"))
        for part in (parts if isinstance(parts, list) else ())
        if isinstance(part, dict)
    ]
    return blake2b(orjson.dumps(said), digest_size=12).hexdigest()
