"""Bodies that are JSON objects: a small one is read here, a large one in a reader process."""

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import orjson

from infra.gateway.http.bodies import parse_object
from infra.gateway.http.readers import Readers
from infra.gateway.http.threads import LARGE_BYTES, run_aside

P = ParamSpec("P")
T = TypeVar("T")
Body = dict[str, Any]

BRACKET_BYTES = 40
QUOTE_BYTES = 4
"""What an object, a list or half a text costs beyond its length, in bytes of plain text: Python
walks over them one by one.
"""


class Here:
    """A body in memory.

    Args:
        size: bytes that it had, about. Work on a large one is done in a thread.
    """

    def __init__(self, body: Body, size: int) -> None:
        self.body = body
        self.size = size

    async def apply(
        self, function: Callable[Concatenate[Body, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what a function says of the body."""
        return await run_aside(self.size, function, self.body, *args, **kwargs)

    async def changed(
        self, function: Callable[Concatenate[Body, P], Body], *args: P.args, **kwargs: P.kwargs
    ) -> "Here":
        """Return what a function makes of the body."""
        return Here(await self.apply(function, *args, **kwargs), self.size)


class Elsewhere:
    """A body that this process keeps as bytes. Readers parse it, anew for each piece of work.

    So what a function does to its body is gone after it, and its result should be small or bytes.
    """

    def __init__(self, content: bytes, readers: Readers) -> None:
        self.content = content
        self.size = len(content)
        self._readers = readers

    async def apply(
        self, function: Callable[Concatenate[Body, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what a function says of the body.

        Raises:
            ProblemError: 400, it is no JSON object, or nested too deeply.
        """
        result: T = await self._readers.run(_applied, function, self.content, *args, **kwargs)
        return result

    async def changed(
        self, function: Callable[Concatenate[Body, P], Body], *args: P.args, **kwargs: P.kwargs
    ) -> "Elsewhere":
        """Return what a function makes of the body."""
        content = await self._readers.run(_changed, function, self.content, *args, **kwargs)
        return Elsewhere(content, self._readers)

    async def here(self) -> Here:
        """Return the body in memory; a thread parses it.

        Raises:
            ProblemError: 400, it is no JSON object, or nested too deeply.
        """
        return Here(await run_aside(self.size, parse_object, self.content), self.size)


Document = Here | Elsewhere


def document_of(content: bytes, readers: Readers, most: int = LARGE_BYTES) -> Document:
    """Return a body as a document.

    Args:
        most: readers work on bodies from this size on; see `is_large`.

    Raises:
        ProblemError: 400, it is small, and no JSON object, or nested too deeply. A large one is
            first looked at when something is done with it.
    """
    if is_large(content, most):
        return Elsewhere(content, readers)
    return Here(parse_object(content), len(content))


def is_large(content: bytes, most: int = LARGE_BYTES) -> bool:
    """Return whether a document weighs `most` bytes or more, with its brackets and quotation
    marks.
    """
    if len(content) >= most:
        return True
    brackets = content.count(b"{") + content.count(b"[")
    weight = len(content) + BRACKET_BYTES * brackets + QUOTE_BYTES * content.count(b'"')
    return weight >= most


def _applied(function: Callable[..., Any], content: bytes, *arguments: Any) -> Any:
    return function(parse_object(content), *arguments)


def _changed(function: Callable[..., Body], content: bytes, *arguments: Any) -> bytes:
    return orjson.dumps(function(parse_object(content), *arguments))
