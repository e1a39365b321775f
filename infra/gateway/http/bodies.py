"""Request bodies: of bounded size and depth, read in bounded time."""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from infra.gateway.http.problems import ProblemError
from infra.gateway.http.threads import run_aside

# Deeper JSON makes recursive code that reads it later run out of stack.
MOST_DEPTH = 100


async def read_body(request: Request) -> bytes:
    """Return a request's body.

    Raises:
        ProblemError: 413, it is longer than `gateway.max_body_bytes`; 400, the caller hung up
            half-way.
    """
    limit: int = request.app.state.services.settings.max_body_bytes
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise ProblemError(
                    413,
                    "Request too large",
                    f"the body is longer than {limit} bytes (gateway.max_body_bytes)",
                )
            chunks.append(chunk)
    except ClientDisconnect as error:
        raise ProblemError(
            400, "Request broken off", "the connection ended before the body did"
        ) from error
    # To join many MiB takes milliseconds: each page of new memory is fetched. Python gives up its
    # lock meanwhile.
    return chunks[0] if len(chunks) == 1 else await run_aside(size, b"".join, chunks)


def parse_json(body: bytes) -> Any:
    """Return a JSON body.

    Raises:
        ProblemError: 400, it is no JSON, or nested too deeply.
    """
    deep = f"the body is nested more than {MOST_DEPTH} deep"
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # orjson has a limit of its own, which is higher.
        said = deep if "depth limit" in str(error) else f"the body is not JSON: {error}"
        raise ProblemError(400, "Malformed JSON", said) from error
    if body.count(b"[") + body.count(b"{") > MOST_DEPTH and _is_deep(document):
        raise ProblemError(400, "Malformed JSON", deep)
    return document


def parse_object(body: bytes) -> dict[str, Any]:
    """Return a JSON body that is an object.

    Raises:
        ProblemError: 400, it is none, or nested too deeply.
    """
    document = parse_json(body)
    if not isinstance(document, dict):
        raise ProblemError(
            400,
            "Malformed request",
            f"the body must be a JSON object, not {type(document).__name__}",
        )
    return document


class _BoundedRequest(Request):
    """A request that FastAPI reads under our limits."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            self._body = await read_body(self)
        return self._body

    async def json(self) -> Any:
        content = await self.body()
        return await run_aside(len(content), parse_json, content)


class BoundedRoute(APIRoute):
    """A route whose body FastAPI reads under our limits."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler."""
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            return await handle(_BoundedRequest(request.scope, request.receive))

        return handle_bounded


def _is_deep(document: Any) -> bool:
    """Return whether a document has more than `MOST_DEPTH` objects and lists within each other."""
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(MOST_DEPTH):
        level = [
            value
            for outer in level
            for value in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(value, dict | list)
        ]
    return bool(level)
