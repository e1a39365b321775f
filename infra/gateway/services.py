"""What the gateway's routes share, made once by `create_app`."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx
import orjson
from fastapi import Depends, Request

from infra.config import Settings
from infra.gateway.problems import ProblemError
from infra.gateway.publishing import Publisher
from infra.gateway.routing import RoutingTable
from schemas.envelope import AnyEvent
from schemas.topics import Topic
from streams.records import Outgoing


@dataclass
class Services:
    """The gateway's parts.

    Attributes:
        requests: model calls by outcome: `served`, `failed` (no answer from the model server, or one of status 5xx),
            `refused` (the model server said the caller was wrong), `cancelled` (the caller hung up).
    """

    settings: Settings
    publisher: Publisher
    routing: RoutingTable
    http: httpx.AsyncClient
    requests: Counter[str] = field(default_factory=Counter)

    def record(self, topic: Topic, *events: AnyEvent) -> None:
        """Hand over events of one rollout without waiting for the disk."""
        self.publisher.publish(self._outgoing(topic, events))

    async def record_durably(self, topic: Topic, *events: AnyEvent) -> None:
        """Hand over events of one rollout and return when they are durable.

        Raises:
            LogUnavailableError: they could be written neither to the log nor to the spool.
        """
        await asyncio.wrap_future(self.publisher.publish(self._outgoing(topic, events)))

    def _outgoing(self, topic: Topic, events: Sequence[AnyEvent]) -> list[Outgoing]:
        for event in events:
            self.routing.count(event.rollout_id or "", topic.name, 1)
        return [Outgoing.of(topic, event.rollout_id or "", event) for event in events]


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Shared = Annotated[Services, Depends(_services)]


async def read_body(request: Request, limit: int) -> bytes:
    """Return a request's body.

    Raises:
        ProblemError: 413, it is longer than `limit` bytes.
    """
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise ProblemError(
                413, "Request too large", f"the body is longer than {limit} bytes (gateway.max_body_bytes)"
            )
        chunks.append(chunk)
    return b"".join(chunks)


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """Return a request's body as a JSON object.

    Raises:
        ProblemError: 400, it is none; 413, it is too large.
    """
    body = await read_body(request, limit)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProblemError(400, "Malformed JSON", f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ProblemError(400, "Malformed request", f"the body must be a JSON object, not {type(document).__name__}")
    return document
