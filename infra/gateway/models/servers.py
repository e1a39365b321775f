"""Model servers: how they are asked, when a try is repeated, and when a server is left alone.

The gateway asks the same server again if it could not be reached, or if it said that it may answer
later (408, 429, 500, 502, 503, 504). It does not ask a server again that was silent too long: that
server may still work on the first try. Then it asks the fallbacks, in order. After the first byte
of an answer it repeats nothing, because the caller has seen that byte.
"""

import asyncio
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import Any

import aiohttp
import orjson
import structlog

from infra.gateway.http.documents import Document
from infra.gateway.http.egress import EndpointRefusedError, GuardedResolver, check_address
from infra.gateway.http.problems import ProblemError
from infra.gateway.http.threads import LARGE_BYTES
from infra.gateway.routes.targets import Target
from infra.gateway.settings import UpstreamSettings
from schemas.clock import now
from schemas.endpoints import Endpoint

RETRIED = frozenset({408, 429, 500, 502, 503, 504})

# A caller waits while we wait. Beyond this many seconds a fallback, or the error, serves it better.
MOST_RETRY_AFTER_S = 10.0
logger = structlog.get_logger(__name__)


class UpstreamError(Exception):
    """No server answered; the message says why the last one did not.

    Args:
        status: HTTP status to answer with, 502, 503 or 504.
        target: what was asked last.
        attempts: how many tries there were, on all servers.
    """

    def __init__(self, status: int, reason: str, target: Target, attempts: int) -> None:
        super().__init__(reason)
        self.status = status
        self.target = target
        self.attempts = attempts


@dataclass(slots=True)
class Breaker:
    """A circuit breaker (Nygard, Release It!, 2007).

    While it is closed, calls pass. It opens after failures in a row, and then no call passes for
    some seconds. After those it is half open: one call passes as a trial, and its end decides.

    Attributes:
        failures: failures in a row.
        open_until: seconds of the monotonic clock; 0 while the circuit is closed.
        trial: whether the one call of a half-open circuit is under way.
        inflight: calls under way.
    """

    failures: int = 0
    open_until: float = 0.0
    trial: bool = False
    inflight: int = 0

    def admit(self) -> bool:
        """Return whether a call may be made now. In a half-open circuit that call is the trial."""
        if self.open_until == 0.0:
            return True
        if self.trial or time.monotonic() < self.open_until:
            return False
        self.trial = True
        return True

    def record_success(self) -> bool:
        """Count an answer. Return whether it closed the circuit."""
        was_open = self.open_until > 0.0
        self.failures, self.open_until, self.trial = 0, 0.0, False
        return was_open

    def record_failure(self, config: UpstreamSettings) -> bool:
        """Count a failure. Return whether it opened the circuit."""
        self.failures += 1
        was_open, was_trial, self.trial = self.open_until > 0.0, self.trial, False
        if self.failures < config.breaker_failures and not was_trial:
            return False
        self.open_until = time.monotonic() + config.breaker_open_s
        return not was_open

    def release_trial(self) -> None:
        """Let another call be the trial: this one ended and told nothing about the server."""
        self.trial = False


@dataclass
class Reply:
    """A server's answer whose body has not been read.

    Attributes:
        target: what answered.
        attempts: number of tries, on all servers.
    """

    target: Target
    response: aiohttp.ClientResponse
    attempts: int
    breaker: Breaker
    _closed: bool = field(default=False)

    def close(self) -> None:
        """Give the connection back, or drop it when the body was not read to its end."""
        if not self._closed:
            self._closed = True
            self.breaker.inflight -= 1
            self.response.close()


@dataclass(frozen=True, slots=True)
class _Request:
    """What every server is asked; each gets its own `model` and key."""

    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one try came to.

    Attributes:
        reply: the server's answer; None if it gave none.
        failure: why the try should be repeated or replaced; None if the answer is final.
        wait_s: seconds until the same server may be asked again; None if it must not be.
    """

    reply: Reply | None
    failure: UpstreamError | None
    wait_s: float | None


class Upstreams:
    """The model servers, with a connection pool and a circuit breaker for each.

    Attributes:
        breakers: the circuit breaker of each base URL.
    """

    def __init__(self, config: UpstreamSettings, timeout_s: float) -> None:
        self.config = config
        self.breakers: dict[str, Breaker] = {}
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._prober: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the connection pool. Must run in the event loop that will make the calls."""
        # No limit here: limits are the keys' (`gateway/http/limits.py`), and a call that waited for
        # a connection would look like a slow server.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60, resolver=GuardedResolver())
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=True,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers={"user-agent"},
        )
        self._prober = asyncio.create_task(self._probe_forever())

    async def close(self) -> None:
        """Close every connection."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def breaker(self, base_url: str) -> Breaker:
        """Return the circuit breaker of a server."""
        return self.breakers.setdefault(base_url, Breaker())

    async def ask(
        self,
        targets: Sequence[Target],
        path: str,
        document: Document,
        headers: Mapping[str, str],
    ) -> Reply:
        """Ask the first target, then its fallbacks, until one answers.

        Args:
            targets: what serves, then its fallbacks; at least one, each with an endpoint.
            path: below the base URL, such as `/chat/completions`.
            document: the request; each endpoint's own `model` is put in.

        Returns:
            The first final answer. If nothing is left to try, the last answer, even one of a status
            that is otherwise repeated.

        Raises:
            UpstreamError: none answered.
            ProblemError: 400, the request is nested too deeply; 503, a server's key is not set.
        """
        request = _Request(path, headers)
        failure: UpstreamError | None = None
        for place, target in enumerate(targets, start=1):
            content = await document.apply(_content, _endpoint(target))
            last = place == len(targets)
            reply, failure = await self._ask_server(target, request, content, failure, last)
            if reply is not None:
                return reply
        assert failure is not None  # noqa: S101 - there is at least one target
        raise failure

    async def _ask_server(
        self,
        target: Target,
        request: _Request,
        content: bytes,
        failure: UpstreamError | None,
        last: bool,
    ) -> tuple[Reply | None, UpstreamError | None]:
        """Ask a server until it answers, or until no other try of it makes sense.

        Args:
            failure: why what was asked before did not answer; None if nothing was.
            last: whether there is no fallback behind it.

        Returns:
            Its answer, or why there is none.
        """
        breaker = self.breaker(_endpoint(target).base_url)
        attempts = failure.attempts if failure is not None else 0
        for number in range(self.config.retries + 1):
            # 1. Leave a server alone that failed too often. What failed before says more.
            if not breaker.admit():
                return None, failure or _left_alone(target, breaker, attempts)

            # 2. Ask the server once. Its breaker hears how that went.
            attempts += 1
            outcome = await self._ask_once(target, request, content, number, attempts)
            again = outcome.wait_s is not None and number < self.config.retries

            # 3. Return a final answer, or one that no further try can replace.
            stuck = not again or breaker.open_until > 0.0
            if outcome.reply is not None:
                if outcome.failure is None or (last and stuck):
                    return outcome.reply, None
                outcome.reply.close()
            failure = outcome.failure

            # 4. Ask the same server again after a wait, or go on to the next fallback.
            if not again:
                break
            await asyncio.sleep(outcome.wait_s or 0.0)
        return None, failure

    async def _ask_once(
        self, target: Target, request: _Request, content: bytes, number: int, attempts: int
    ) -> _Outcome:
        """Ask a server once, tell its breaker, and say what may come next.

        Args:
            number: how often this server was asked before, for this call.
            attempts: how many tries there were on all servers, with this one.
        """
        endpoint = _endpoint(target)
        breaker = self.breaker(endpoint.base_url)
        try:
            response = await self._send(endpoint, request, content, breaker)
        except TimeoutError as error:
            self._record_failure(endpoint, breaker)
            reason = f"{endpoint.base_url}: no answer in time"
            return _Outcome(None, _failure(504, reason, target, attempts, error), None)
        except (aiohttp.ClientError, OSError) as error:
            self._record_failure(endpoint, breaker)
            reason = f"{endpoint.base_url}: no answer ({type(error).__name__}: {error})"
            failure = _failure(502, reason, target, attempts, error)
            return _Outcome(None, failure, self._backoff_s(number))
        if response.status >= 500:
            self._record_failure(endpoint, breaker)
        elif breaker.record_success():
            logger.info("model server answers again", endpoint=endpoint.base_url)
        reply = Reply(target, response, attempts, breaker)
        if response.status not in RETRIED:
            return _Outcome(reply, None, None)
        reason = f"{endpoint.base_url}: status {response.status}"
        wait_s = self._backoff_s(number)
        if (retry_after := response.headers.get("retry-after")) is not None:
            wait_s = max(wait_s, seconds_of(retry_after, now()))
        return _Outcome(
            reply,
            UpstreamError(502, reason, target, attempts),
            wait_s if wait_s <= MOST_RETRY_AFTER_S else None,
        )

    async def _send(
        self,
        endpoint: Endpoint,
        request: _Request,
        content: bytes,
        breaker: Breaker,
    ) -> aiohttp.ClientResponse:
        assert self._session is not None  # noqa: S101 - started
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=self.config.connect_timeout_s,
            sock_read=endpoint.timeout_s or self._timeout_s,
        )
        # aiohttp joins bytes with the head, in one long step. A file is sent in pieces.
        data = BytesIO(content) if len(content) >= LARGE_BYTES else content
        breaker.inflight += 1
        try:
            return await self._session.post(
                endpoint.base_url.rstrip("/") + request.path,
                data=data,
                headers={**request.headers, **_authorization(endpoint)},
                timeout=timeout,
                allow_redirects=False,
            )
        except BaseException as error:
            breaker.inflight -= 1
            # A cancelled call, or one without a key, tells nothing about the server.
            if not isinstance(error, aiohttp.ClientError | OSError):
                breaker.release_trial()
            raise

    def _record_failure(self, endpoint: Endpoint, breaker: Breaker) -> None:
        if breaker.record_failure(self.config):
            logger.warning(
                "model server left alone", endpoint=endpoint.base_url, failures=breaker.failures
            )

    def _backoff_s(self, number: int) -> float:
        """Return seconds to wait: exponential backoff with full jitter, so that callers who failed
        together do not come back together (Brooker, AWS Architecture Blog, 2015).
        """
        most = min(self.config.most_backoff_s, self.config.backoff_s * 2**number)
        return random.uniform(0, most)  # noqa: S311 - no secret

    async def _probe_forever(self) -> None:
        while True:
            await asyncio.sleep(self.config.health_interval_s)
            for base_url, breaker in list(self.breakers.items()):
                if breaker.open_until > 0.0:
                    await self._probe(base_url, breaker)

    async def _probe(self, base_url: str, breaker: Breaker) -> None:
        """Ask a server that is left alone for its models. Any status below 500 says: it is back."""
        assert self._session is not None  # noqa: S101 - started
        timeout = aiohttp.ClientTimeout(total=self.config.connect_timeout_s)
        try:
            async with self._session.get(
                f"{base_url.rstrip('/')}/models", timeout=timeout
            ) as response:
                if response.status >= 500:
                    return
        except (aiohttp.ClientError, TimeoutError, OSError):
            return
        breaker.record_success()
        logger.info("model server is back", endpoint=base_url)


def seconds_of(retry_after: str, time: datetime) -> float:
    """Return how long a `retry-after` asks to wait (RFC 9110, 10.2.3): seconds, or until a date.

    Returns:
        Seconds from `time`, >= 0; 0 for a date that has passed and for what has neither form.
    """
    if re.fullmatch(r"[0-9]+", retry_after):  # of ASCII: `\d` and `isdigit` take others too
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
        until = date if date.tzinfo is not None else date.replace(tzinfo=UTC)  # asctime's is UTC
        return max(0.0, (until - time).total_seconds())
    except (IndexError, OverflowError, TypeError, ValueError):
        return 0.0


def _endpoint(target: Target) -> Endpoint:
    assert target.endpoint is not None  # noqa: S101 - routes of kind model have one
    return target.endpoint


def _left_alone(target: Target, breaker: Breaker, attempts: int) -> UpstreamError:
    reason = (
        f"{_endpoint(target).base_url} failed {breaker.failures} times in a row and is left alone"
        " for now"
    )
    return UpstreamError(503, reason, target, attempts)


def _failure(
    status: int, reason: str, target: Target, attempts: int, cause: Exception
) -> UpstreamError:
    failure = UpstreamError(status, reason, target, attempts)
    failure.__cause__ = cause
    return failure


def _content(body: dict[str, Any], endpoint: Endpoint) -> bytes:
    try:
        check_address(endpoint.base_url)
        return orjson.dumps({**_with_token_request(body, endpoint), "model": endpoint.model})
    except EndpointRefusedError as error:
        raise ProblemError(503, "Model not configured", str(error)) from error
    except orjson.JSONEncodeError as error:
        raise ProblemError(
            400, "Malformed request", f"the body cannot be passed on: {error}"
        ) from error


def _authorization(endpoint: Endpoint) -> dict[str, str]:
    if endpoint.api_key_env is None:
        return {}
    key = os.environ.get(endpoint.api_key_env)
    if not key:
        raise ProblemError(
            503,
            "Model not configured",
            f"the environment variable {endpoint.api_key_env} holds no key",
        )
    return {"authorization": f"Bearer {key}"}


def _with_token_request(body: dict[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    """Return a body that asks for token ids and log-probabilities, if the server can give them."""
    if not endpoint.tokens:
        return body
    if "messages" in body:
        return {"return_token_ids": True, **body, "logprobs": True}
    if "prompt" in body:
        return {"return_token_ids": True, "logprobs": 1, **body}
    return body
