"""The services that all routes of the gateway share. `create_app` makes them once."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import structlog
from fastapi import Depends, Request

from infra.gateway.http.access import KeyRing
from infra.gateway.http.limits import Limits
from infra.gateway.http.readers import Readers
from infra.gateway.http.threads import LARGE_BYTES, run_aside
from infra.gateway.models.servers import Upstreams
from infra.gateway.records.encoding import encode_span
from infra.gateway.records.export import SpanExport
from infra.gateway.records.publisher import Publisher
from infra.gateway.records.redaction import Redactor
from infra.gateway.routes.table import RoutingTable
from infra.gateway.settings import GatewaySettings
from infra.gateway.state.conversations import Conversations
from infra.gateway.state.heartbeat import Heartbeat
from infra.gateway.state.lightning import LightningState
from schemas.envelope import AnyEvent
from schemas.serialization import decode
from schemas.spans import SpanEvent
from schemas.topics import SPANS, Topic
from streams.storage.embedded.database import BUSY_TIMEOUT_S, Durability
from streams.storage.log import Log
from streams.storage.records import Outgoing

MOST_BACKGROUND = 256
logger = structlog.get_logger(__name__)


class OpenLog(Protocol):
    """Opens the log of the installation; see `infra.installation.log.open_log`."""

    def __call__(
        self, durability: Durability = "process", timeout_s: float = BUSY_TIMEOUT_S
    ) -> Log:
        """Return a connection to the log."""
        ...


@dataclass
class Counts:
    """Counts of what the gateway has done since it began.

    Attributes:
        requests: model calls by outcome: `served`, `failed` (no answer from the model server, or
            one of status 5xx), `refused` (the model server said the caller was wrong), `cancelled`
            (the caller hung up).
        tokens: by logical model and direction (`input`, `output`).
        cost: by logical model, in the unit of the endpoints' prices.
        invalid_tool_calls: that no schema of the caller allows, by logical model and version.
        shadows: copies of calls by outcome: `answered`, `failed`, `skipped` (too many under way).
    """

    requests: Counter[str] = field(default_factory=Counter)
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    cost: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    invalid_tool_calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    shadows: Counter[str] = field(default_factory=Counter)


@dataclass
class Services:
    """The gateway's parts."""

    settings: GatewaySettings
    open_log: OpenLog
    publisher: Publisher
    routing: RoutingTable
    keys: KeyRing
    limits: Limits
    conversations: Conversations
    upstreams: Upstreams
    redactor: Redactor
    lightning: LightningState
    readers: Readers
    export: SpanExport | None = None
    counts: Counts = field(default_factory=Counts)
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    _background: set[asyncio.Task[None]] = field(default_factory=set)
    _large: set[asyncio.Task[None]] = field(default_factory=set)

    def record(self, topic: Topic, *events: AnyEvent) -> None:
        """Hand over events of one rollout without waiting for the disk."""
        self._count(topic, events)
        self.publisher.publish(self._outgoing(topic, events), urgent=False)

    async def record_durably(self, topic: Topic, *events: AnyEvent) -> None:
        """Hand over events of one rollout and return when they are durable.

        Raises:
            LogUnavailableError: they could be written neither to the log nor to the spool.
        """
        self._count(topic, events)
        await asyncio.wrap_future(self.publisher.publish(self._outgoing(topic, events)))

    async def record_encoded(self, topic: Topic, key: str, event_id: str, value: bytes) -> None:
        """Hand over an event that is redacted and encoded, and return when it is durable.

        Args:
            key: of its rollout.

        Raises:
            LogUnavailableError: it could be written neither to the log nor to the spool.
        """
        self.routing.count(key, topic.name, 1)
        outgoing = Outgoing(topic, key, event_id, value)
        await asyncio.wrap_future(self.publisher.publish([outgoing]))

    def record_span(self, key: str, size: int, span: Callable[[], SpanEvent]) -> None:
        """Hand over a span without waiting for the disk. A large one is made in a thread.

        It counts as recorded at once: the end of its rollout may be told before it is written.

        Args:
            key: of its rollout.
            size: bytes that it is made from, about.
        """
        self.routing.count(key, SPANS.name, 1)
        if size < LARGE_BYTES:
            self._publish_span(*self._encode_span(span))
            return
        task = asyncio.create_task(self._record_aside(size, span))
        self._large.add(task)
        # asyncio keeps weak references only; without this set a task may be collected before it
        # ends.
        task.add_done_callback(self._large.discard)

    def record_encoded_span(
        self, key: str, encoded: Awaitable[tuple[str, bytes, int]], counted: tuple[str, str] | None
    ) -> None:
        """Hand over a span that a reader process makes.

        Args:
            key: of its rollout.
            encoded: its event id, the span as it may be written, how many tool calls are invalid.
            counted: logical model and version under which these calls are counted; None if they
                are counted already.
        """
        self.routing.count(key, SPANS.name, 1)
        task = asyncio.create_task(self._record_elsewhere(key, encoded, counted))
        self._large.add(task)
        task.add_done_callback(self._large.discard)

    def record_encoded_spans(self, spans: Sequence[Outgoing]) -> None:
        """Hand over spans that are redacted and encoded without waiting for the disk."""
        for span in spans:
            self.routing.count(span.key, SPANS.name, 1)
            if self.export is not None:
                self.export.span(decode(SpanEvent, span.value))
        self.publisher.publish(spans, urgent=False)

    async def _record_aside(self, size: int, span: Callable[[], SpanEvent]) -> None:
        self._publish_span(*await run_aside(size, self._encode_span, span))

    async def _record_elsewhere(
        self, key: str, encoded: Awaitable[tuple[str, bytes, int]], counted: tuple[str, str] | None
    ) -> None:
        try:
            event_id, value, invalid_calls = await encoded
        except Exception:
            logger.exception("a large span is lost", rollout=key)
            return
        if counted is not None and invalid_calls:
            self.counts.invalid_tool_calls[counted] += invalid_calls
        if self.export is not None:
            self.export.span(await asyncio.to_thread(decode, SpanEvent, value))
        self.publisher.publish([Outgoing(SPANS, key, event_id, value)], urgent=False)

    def _encode_span(self, span: Callable[[], SpanEvent]) -> tuple[SpanEvent, Outgoing]:
        written, value = encode_span(self.redactor, span())
        return written, Outgoing(SPANS, written.rollout_key, written.event_id, value)

    def _publish_span(self, span: SpanEvent, encoded: Outgoing) -> None:
        if self.export is not None:
            self.export.span(span)
        self.publisher.publish([encoded], urgent=False)

    def hand_over(self, topic: Topic, key: str, event: AnyEvent) -> None:
        """Hand over an event that belongs to no rollout without waiting for the disk."""
        self.publisher.publish([Outgoing.of(topic, key, self.redactor.event(event))], urgent=False)

    async def write(self, topic: Topic, key: str, event: AnyEvent) -> None:
        """Hand over an event that belongs to no rollout and return when it is durable.

        Raises:
            LogUnavailableError: it could be written neither to the log nor to the spool.
        """
        written = self.publisher.publish([Outgoing.of(topic, key, self.redactor.event(event))])
        await asyncio.wrap_future(written)

    def in_background(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do something that nobody waits for; return whether there was room for it."""
        if len(self._background) >= MOST_BACKGROUND:
            work.close()
            return False
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return True

    async def close(self) -> None:
        """Stop what nobody waits for."""
        await asyncio.gather(*self._large, return_exceptions=True)
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self.export is not None:
            self.export.close()

    def _count(self, topic: Topic, events: Sequence[AnyEvent]) -> None:
        for event in events:
            self.routing.count(event.rollout_key, topic.name, 1)

    def _outgoing(self, topic: Topic, events: Sequence[AnyEvent]) -> list[Outgoing]:
        outgoing = []
        for event in events:
            if isinstance(event, SpanEvent):
                span, value = encode_span(self.redactor, event)
                outgoing.append(Outgoing(topic, event.rollout_key, event.event_id, value))
                if self.export is not None:
                    self.export.span(span)
            else:
                written = self.redactor.event(event)
                outgoing.append(Outgoing.of(topic, event.rollout_key, written))
        return outgoing


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Shared = Annotated[Services, Depends(_services)]
