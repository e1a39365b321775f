"""The one serialiser: events to UTF-8 JSON bytes and back.

The value of a record is one event, or several events of one key, each on a line of its own (JSON
Lines). They share the cost of a record. Compact JSON contains no line break.
"""

from collections.abc import Sequence
from typing import TypeVar

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from schemas.envelope import AnyEvent

E = TypeVar("E", bound=AnyEvent)


class UndecodableError(ValueError):
    """The bytes are not an event of the expected type. The message names the wrong fields."""


def encode(event: AnyEvent) -> bytes:
    """Return an event as compact JSON, with the fields that the model does not know."""
    return event.model_dump_json().encode()


def encode_json(event: AnyEvent) -> bytes:
    """Return what `encode` returns, for an event whose payload holds values of JSON documents.

    No value is looked at twice, so it takes a fraction of the time where they are many.
    """
    document = {**dict(event), "payload": dict(event.payload)}
    try:
        return orjson.dumps(document, option=orjson.OPT_UTC_Z)
    except TypeError:  # an integer of more than 64 bits, a text that is not Unicode
        return encode(event)


def decode(model: type[E], value: bytes | None) -> E:
    """Return the event in `value`.

    Raises:
        UndecodableError: it is not JSON, or not an event of this type.
    """
    if value is None:
        raise UndecodableError(f"expected a {model.__name__}, found an empty value")
    try:
        return model.model_validate_json(value)
    except ValidationError as error:
        raise UndecodableError(f"not a {model.__name__}: {readable(error)}") from error


def decode_all(model: type[E], value: bytes | None) -> list[E]:
    """Return the events in `value`, at least one.

    Raises:
        UndecodableError: a line is not JSON, or not an event of this type.
    """
    if value is None or b"\n" not in value:
        return [decode(model, value)]
    # Also the last line may end in a break, which other writers add.
    return [decode(model, line) for line in value.splitlines() if line]


def join_events(values: Sequence[bytes]) -> bytes:
    """Return encoded events as the value of one record."""
    return b"\n".join(values)


def readable(error: ValidationError, whole: str = "body", limit: int = 5) -> str:
    """Return a validation error as one line that names at most `limit` wrong fields.

    Args:
        whole: name of the document, for what is wrong with all of it.
    """
    problems = [
        ": ".join(filter(None, (".".join(map(str, problem["loc"])) or whole, _message_of(problem))))
        for problem in error.errors(include_url=False, include_context=False)
    ]
    more = f" (and {len(problems) - limit} more)" if len(problems) > limit else ""
    return "; ".join(problems[:limit]) + more


def _message_of(problem: ErrorDetails) -> str:
    """Return a problem in our own words where a validator of ours found it."""
    return " ".join(problem["msg"].removeprefix("Value error, ").split())
