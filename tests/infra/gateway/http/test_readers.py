"""Reader processes do what the gateway would do itself, and their death costs one request."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from infra.gateway.http.bodies import parse_json
from infra.gateway.http.documents import Elsewhere, Here, document_of, is_large
from infra.gateway.http.problems import ProblemError
from infra.gateway.http.readers import ReaderDiedError, Readers
from infra.gateway.http.threads import LARGE_BYTES

BODY = {"text": "ß" * LARGE_BYTES, "number": 1.5}


@pytest.fixture
def readers() -> Iterator[Readers]:
    pool = Readers()
    yield pool
    pool.close()


def size_of(body: dict[str, Any], unit: int) -> int:
    return len(body["text"]) // unit


def doubled(body: dict[str, Any]) -> dict[str, Any]:
    return body | {"text": body["text"] * 2}


def both(body: dict[str, Any], more: bytes) -> tuple[int, bytes, bytes]:
    return len(body), more, more[:1]


def fail(_: dict[str, Any]) -> None:
    raise ProblemError(418, "Teapot", "no coffee")


def say_what_cannot_be_sent(_: dict[str, Any]) -> None:
    raise type("LocalError", (Exception,), {})("lost")


def die(_: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def test_a_body_elsewhere_is_worked_on_as_one_here(readers: Readers) -> None:
    here, elsewhere = Here(BODY, 0), Elsewhere(orjson.dumps(BODY), readers)
    more = b"x" * LARGE_BYTES
    for document in (here, elsewhere):
        assert await document.apply(size_of, 2) == LARGE_BYTES // 2
        assert await document.apply(both, more) == (2, more, b"x")
        changed = await document.changed(doubled)
        assert await changed.apply(size_of, 1) == 2 * LARGE_BYTES
        assert await document.apply(size_of, 1) == LARGE_BYTES, "the document itself stays"


async def test_what_is_raised_elsewhere_is_raised_here(readers: Readers) -> None:
    document = Elsewhere(orjson.dumps(BODY), readers)
    with pytest.raises(ProblemError) as raised:
        await document.apply(fail)
    assert (raised.value.status_code, raised.value.detail) == (418, "no coffee")
    with pytest.raises(RuntimeError, match="LocalError: lost"):
        await document.apply(say_what_cannot_be_sent)
    for content, says in (
        (b"[" * 200 + b"]" * 200, "nested"),
        (b"{", "not JSON"),
        (b"[]", "JSON object"),
    ):
        with pytest.raises(ProblemError, match=says):
            await Elsewhere(content, readers).apply(size_of, 1)


async def test_a_reader_that_dies_costs_one_piece_of_work(readers: Readers) -> None:
    document = Elsewhere(orjson.dumps(BODY), readers)
    with pytest.raises(ReaderDiedError, match="_applied"):
        await document.apply(die)
    assert await document.apply(size_of, 1) == LARGE_BYTES


@pytest.mark.parametrize(
    ("content", "large"),
    [
        (b'{"a": "' + b"word " * 10_000 + b'"}', False),
        (b'{"a": "' + b"word " * 14_000 + b'"}', True),
        (b'{"a": [' + b"{}," * 1_000 + b"1]}", False),
        (b'{"a": [' + b"{}," * 2_000 + b"1]}", True),
        (b'{"a": [' + b'"",' * 10_000 + b"1]}", True),
    ],
)
def test_a_document_of_many_parts_is_large_before_a_text_is(content: bytes, large: bool) -> None:
    assert is_large(content) == large
    document = document_of(content, Readers())
    assert isinstance(document, Elsewhere if large else Here)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[" * 100 + b"]" * 100, None),
        (b"[" * 101 + b"]" * 101, "nested more than 100 deep"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "nested more than 100 deep"),
        (b"[" + b'["[[[[", {}],' * 500 + b"1]", None),
        (b"[" * 100_000, "nested more than 100 deep"),
        (b"[" * 200, "not JSON"),
    ],
)
def test_how_deep_a_body_may_be_nested(content: bytes, says: str | None) -> None:
    if says is None:
        assert parse_json(content) == orjson.loads(content)
        return
    with pytest.raises(ProblemError, match=says):
        parse_json(content)
