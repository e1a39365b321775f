"""Implicit feedback: the next message of a user or a tool tells how good the answer before it was.

A model call that continues a conversation contains the earlier answer and the replies to it. A
reader makes a reward of the replies: rules (thanks and complaints of users, errors of tools), or a
model. Replies that tell nothing give no reward.

A model call that continues a conversation holds the earlier answer and what was said to it. A
reader makes a reward of that: rules (thanks and complaints of users, errors of tools), or a model.
What it does not understand is no reward.
"""

import re
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import takewhile
from typing import Any, ClassVar, Protocol, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.envelope import AnyEvent, UnitInterval
from schemas.rewards import Reward, RewardEvent, RewardSource
from schemas.spans import Attribute, SpanEvent
from schemas.topics import REWARDS, SPANS, Topic
from streams.processing.processor import Outcome, Processor, output_id
from streams.storage.records import Outgoing, Record

ANSWERS_REMEMBERED = 64

Answers = dict[str, str]
"""Fingerprint of an answer to the id of the span that gave it, the newest last."""

Reply = tuple[str, str]
"""Role and words of a message after an answer."""


class ImplicitRule(BaseModel):
    """A rule: the reward of an answer if a reply matches.

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
            raise ValueError(
                f"implicit rule {self.pattern!r} is no regular expression: {error}"
            ) from error
        return self


DEFAULT_RULES = (
    ImplicitRule(
        role="tool", pattern=r"^\s*(?:\{\"?error|error\b|traceback|exception\b)", value=0.0
    ),
    ImplicitRule(
        role="user",
        pattern=r"\b(?:that|this|you|it)(?:'?s|'?re| is| are)"
        r" (?:wrong|incorrect|not (?:right|what i))",
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
        model: logical model that reads instead of the rules.
        rules: tried in order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = False
    model: str | None = None
    rules: tuple[ImplicitRule, ...] = DEFAULT_RULES


class Reader(Protocol):
    """Reads from the replies how good an answer was.

    Attributes:
        name: reader and version, such as `implicit@1`.
        source: in whose name it rewards.
    """

    name: str
    source: RewardSource

    def read(self, answer: str, replies: Sequence[Reply]) -> float | None:
        """Return a reward in [0, 1]; None if the replies tell nothing.

        Raises:
            TransientError: the reader could not be asked; worth another try.
            RejectedRecordError: what it said is no reward.
        """
        ...


class RuleReader:
    """Reads by rules; the first that matches any reply counts."""

    name = "implicit@1"
    source = RewardSource.RULE

    def __init__(self, rules: Sequence[ImplicitRule] = DEFAULT_RULES) -> None:
        self._rules = [
            (rule.role, re.compile(rule.pattern, re.IGNORECASE), rule.value) for rule in rules
        ]

    def read(self, answer: str, replies: Sequence[Reply]) -> float | None:  # noqa: ARG002
        """Return the reward of the first rule that matches."""
        for role, text in replies:
            for of, pattern, value in self._rules:
                if of == role and pattern.search(text):
                    return value
        return None


class ImplicitFeedback(Processor[Answers]):
    """Rewards the span whose answer the next call of its conversation replies to, once."""

    name = "implicit"
    topics: ClassVar[tuple[Topic, ...]] = (SPANS,)
    batch: ClassVar[int] = 64
    max_attempts: ClassVar[int] = 4

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def handle(self, state: Answers | None, event: AnyEvent, source: Record) -> Outcome[Answers]:
        """Read the replies to earlier answers in a call, and remember the call's own answers."""
        assert isinstance(event, SpanEvent)  # noqa: S101 - the topic holds nothing else
        answers = dict(state or {})
        outputs = []
        for index, (span_id, value, said) in enumerate(self._read(answers, event)):
            payload = Reward(
                value=value,
                source=self.reader.source,
                grader=self.reader.name,
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
        # A long rollout must not make its state grow without bound.
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
        """Yield span id, reward and replies of each remembered answer that got a reply. Forget
        these answers.
        """
        messages = _messages(event, Attribute.INPUT_MESSAGES)
        for number, message in enumerate(messages):
            if (
                message.get("role") != "assistant"
                or (span_id := answers.get(_fingerprint(message))) is None
            ):
                continue
            following = takewhile(
                lambda reply: reply.get("role") != "assistant", messages[number + 1 :]
            )
            replies = [(str(reply.get("role")), _text(reply)) for reply in following]
            if not replies:
                continue
            # The next call repeats the whole conversation; the answer must not be rewarded again.
            del answers[_fingerprint(message)]
            value = self.reader.read(_text(message), replies)
            if value is not None:
                yield span_id, value, "\n".join(text for _, text in replies)


def _messages(event: SpanEvent, attribute: Attribute) -> list[dict[str, Any]]:
    found = event.payload.attributes.get(attribute)
    return (
        [message for message in found if isinstance(message, dict)]
        if isinstance(found, list)
        else []
    )


def _text(message: dict[str, Any]) -> str:
    """Return the words of a message of the GenAI conventions, tool results included."""
    parts = message.get("parts")
    found = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "\n".join(str(part.get("content", part.get("response", ""))) for part in found)


def _fingerprint(message: dict[str, Any]) -> str:
    """Return a hash by which an answer is found again: of its words and its tool calls."""
    parts = message.get("parts")
    said = [
        # Only these: agents may add or drop other fields when they send an answer back.
        (part.get("type"), part.get("content"), part.get("id"), part.get("name"))
        for part in (parts if isinstance(parts, list) else ())
        if isinstance(part, dict)
    ]
    return blake2b(orjson.dumps(said), digest_size=12).hexdigest()
