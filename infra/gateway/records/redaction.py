"""Redaction: it removes personal data and secrets from events before they are written.

Rules are regular expressions. They apply to every text that an agent, a model or a person wrote.
Identifiers and names that Everloop made stay, so that redacted events still join.
"""

import re
from collections.abc import Callable
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from schemas.decisions import Candidate, DecisionEvent
from schemas.envelope import AnyEvent
from schemas.lightning import Appended, Created, LightningEvent
from schemas.rewards import RewardEvent
from schemas.rollouts import RolloutEvent
from schemas.spans import Attribute, SpanEvent

Builtin = Literal["email", "phone", "credit_card", "ip_address", "secret"]

BUILTIN: dict[Builtin, tuple[str, str]] = {
    "email": (r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,253}\.[A-Za-z]{2,24}", "[EMAIL]"),
    "credit_card": (r"(?<![\w.-])(?:\d[ -]?){12,18}\d(?![\w-])", "[CARD]"),
    "phone": (r"(?<![\w+])\+\d(?:[ ().-]{0,2}\d){6,14}(?!\d)", "[PHONE]"),
    "ip_address": (
        r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.])",
        "[IP]",
    ),
    "secret": (
        # Left of a key there is no letter or digit: `task_...` holds no key of `sk_`. Ordinary
        # names such as `pk_of_the_table` have small letters alone; keys drawn at random do not.
        r"(?<![A-Za-z0-9])(?:(?:sk|pk|rk|evl|gh[oprsu]|xox[abp])[-_](?=[-_a-z]*[A-Z0-9])[-_A-Za-z0-9]{16,}"
        r"|AKIA[A-Z0-9]{16}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})"
        r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----",
        "[SECRET]",
    ),
}
"""Pattern and replacement of each built-in rule.

A card number must also pass Luhn's check. A telephone number must begin with `+` (ITU-T E.164):
without it, it looks like any other number.
"""

STRUCTURAL = frozenset(
    {
        Attribute.OPERATION,
        Attribute.REQUEST_MODEL,
        Attribute.RESPONSE_MODEL,
        Attribute.RESPONSE_ID,
        Attribute.CHECKPOINT,
        Attribute.NODE,
        Attribute.GROUP,
        Attribute.KEY_ID,
        Attribute.ENDPOINT,
        Attribute.ROLLOUT_ID,
    }
)
TOKENS = frozenset({Attribute.PROMPT_TOKEN_IDS, Attribute.RESPONSE_TOKEN_IDS})


class Rule(BaseModel):
    """A pattern and its replacement, as in Python's `re.sub`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: str
    replacement: str = "[REDACTED]"


class RedactionConfig(BaseModel):
    """What is removed.

    Attributes:
        builtin: names of built-in rules.
        rules: further rules; they apply after the built-in ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    builtin: tuple[Builtin, ...] = ()
    rules: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _patterns(self) -> Self:
        for rule in self.rules:
            try:
                re.compile(rule.pattern)
            except re.error as error:
                raise ValueError(
                    f"redaction rule {rule.pattern!r} is no regular expression: {error}"
                ) from error
        return self


class Redactor:
    """Removes text from events."""

    def __init__(self, config: RedactionConfig) -> None:
        self._rules: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = []
        for name in config.builtin:
            pattern, replacement = BUILTIN[name]
            self._rules.append(
                (re.compile(pattern), _card if name == "credit_card" else replacement)
            )
        self._rules += [(re.compile(rule.pattern), rule.replacement) for rule in config.rules]

    @property
    def active(self) -> bool:
        """Whether there is any rule."""
        return bool(self._rules)

    def text(self, text: str) -> str:
        """Return a text with every match replaced."""
        for pattern, replacement in self._rules:
            text = pattern.sub(replacement, text)
        return text

    def value(self, value: Any) -> Any:
        """Return a JSON value whose texts, keys included, are redacted."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {self.text(name): self.value(item) for name, item in value.items()}
        return value

    def candidates(self, candidates: list[Candidate]) -> list[Candidate]:
        """Return candidates with redacted texts.

        The policy must see these, because learning from the log needs the texts that it decided on.
        """
        if not self._rules:
            return candidates
        return [
            candidate.model_copy(update={"text": self.text(candidate.text)})
            for candidate in candidates
        ]

    def event(self, event: AnyEvent) -> AnyEvent:
        """Return an event as it may be written."""
        if not self._rules:
            return event
        match event:
            case SpanEvent(payload=span):
                updates: dict[str, Any] = {
                    "attributes": self._attributes(span.attributes),
                    "status_message": self.text(span.status_message),
                }
            case RolloutEvent(payload=rollout):
                task = rollout.task and rollout.task.model_copy(
                    update={
                        "input": self.value(rollout.task.input),
                        "expected": self.value(rollout.task.expected),
                    }
                )
                updates = {
                    "task": task,
                    "output": self.value(rollout.output),
                    "error": self.value(rollout.error),
                }
            case RewardEvent(payload=reward):
                updates = {"comment": self.text(reward.comment), "edit": self.value(reward.edit)}
            case DecisionEvent(payload=decision):
                updates = {
                    "context": self.text(decision.context),
                    "candidates": self.candidates(decision.candidates),
                }
            case LightningEvent(payload=lightning):
                updates = {"change": self._change(lightning.change)}
            case _:
                return event
        return event.model_copy(update={"payload": event.payload.model_copy(update=updates)})

    def _change(self, change: Any) -> Any:
        match change:
            case Created():
                return change.model_copy(update={"input": self.value(change.input)})
            case Appended():
                data = self.value(change.data)
                if data != change.data:
                    data = _without_tokens(data)
                return change.model_copy(update={"data": data})
        return change

    def _attributes(self, attributes: dict[str, Any]) -> dict[str, Any]:
        kept = {
            name: value if name in STRUCTURAL else self.value(value)
            for name, value in attributes.items()
        }
        if kept == attributes:
            return attributes
        # Token ids encode the text. If the text changed, they would give it away.
        return {name: value for name, value in kept.items() if name not in TOKENS}


def _without_tokens(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_tokens(item) for item in value]
    if isinstance(value, dict):
        return {
            name: [] if name in ("prompt_token_ids", "token_ids") else _without_tokens(item)
            for name, item in value.items()
        }
    return value


def _card(found: re.Match[str]) -> str:
    """Return the replacement of a number that passes Luhn's check (ISO/IEC 7812-1). Others stay."""
    digits = [int(digit) for digit in found.group() if digit.isdigit()]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return "[CARD]" if (sum(doubled) + sum(digits[-1::-2])) % 10 == 0 else found.group()
