"""Asking model servers: connections kept open, tries repeated before the first byte, servers that
fail left alone.

A try is repeated on the same server when it could not be reached or said that it may answer later
(408, 429, 500, 502, 503, 504); a server that was silent too long is not asked again, since it may
be at work on the first try. Then come the fallbacks, in order. After the first byte of an answer
nothing is repeated: the caller has seen it.
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
from typing import Any

import aiohttp
import orjson
import structlog

from infra.gateway.http.egress import EndpointRefusedError, GuardedResolver, check_address
from infra.gateway.http.problems import ProblemError
from infra.gateway.routes.table import Target
from infra.gateway.settings import UpstreamSettings
from schemas.clock import now
from schemas.endpoints import Endpoint

RETRIED = frozenset({408, 429, 500, 502, 503, 504})
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
    """A circuit breaker (Nygard, Release It!, 2007): closed, open, or half open with one call as a
    trial.

    Attributes:
        failures: in a row.
        open_until: on the monotonic clock, seconds; 0 when closed.
        inflight: calls under way.
    """

    failures: int = 0
    open_until: float = 0.0
    trial: bool = False
    inflight: int = 0

    def allows(self) -> bool:
        """Return whether a call may be made now; it is the trial where the circuit is half open."""
        if self.open_until == 0.0:
            return True
        if self.trial or time.monotonic() < self.open_until:
            return False
        self.trial = True
        return True

    def succeeded(self) -> bool:
        """Note an answer; return whether that closed the circuit."""
        was_open = self.open_until > 0.0
        self.failures, self.open_until, self.trial = 0, 0.0, False
        return was_open

    def failed(self, config: UpstreamSettings) -> bool:
        """Note a failure; return whether that opened the circuit."""
        self.failures += 1
        was_open, was_trial, self.trial = self.open_until > 0.0, self.trial, False
        if self.failures < config.breaker_failures and not was_trial:
            return False
        self.open_until = time.monotonic() + config.breaker_open_s
        return not was_open

    def given_up(self) -> None:
        """Note that a call ended without saying anything of the server: another may be the
        trial.
        """
        self.trial = False


@dataclass
class Reply:
    """A server's answer whose body has not been read.

    Attributes:
        target: what answered.
        attempts: how many tries it took, on all servers.
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


class Upstreams:
    """The model servers, by what is known of each.

    Attributes:
        breakers: by base URL.
    """

    def __init__(self, config: UpstreamSettings, timeout_s: float) -> None:
        self.config = config
        self.breakers: dict[str, Breaker] = {}
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._prober: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open for calls; must run in the event loop that will make them."""
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
        """Return what is known of a server."""
        return self.breakers.setdefault(base_url, Breaker())

    async def ask(
        self, targets: Sequence[Target], path: str, body: dict[str, Any], headers: Mapping[str, str]
    ) -> Reply:
        """Send a request to the first target that answers, the fallbacks after it.

        Args:
            targets: what serves, then its fallbacks; all have an endpoint.
            path: below the base URL, such as `/chat/completions`.
            body: the request; `model` is set to the endpoint's.

        Returns:
            The answer. One that may be repeated is only returned when nothing is left to try.

        Raises:
            UpstreamError: none answered.
            ProblemError: 400, the request is nested too deeply; 503, a server's key is not set.
        """
        attempts = 0
        failure: UpstreamError | None = None
        for number, target in enumerate(targets):
            last_target = number == len(targets) - 1
            endpoint = target.endpoint
            assert endpoint is not None  # noqa: S101 - routes of kind model have one
            breaker = self.breaker(endpoint.base_url)
            content = _content(body, endpoint)
            for attempt in range(self.config.retries + 1):
                if not breaker.allows():
                    reason = (
                        f"{endpoint.base_url} failed {breaker.failures} times in a row"
                        " and is left alone for now"
                    )
                    failure = failure or UpstreamError(503, reason, target, attempts)
                    break
                attempts += 1
                last = attempt == self.config.retries
                try:
                    response = await self._send(endpoint, path, content, headers, breaker)
                except TimeoutError as error:
                    self._failed(endpoint, breaker)
                    failure = UpstreamError(
                        504, f"{endpoint.base_url}: no answer in time", target, attempts
                    )
                    failure.__cause__ = error
                    break
                except (aiohttp.ClientError, OSError) as error:
                    self._failed(endpoint, breaker)
                    reason = f"{endpoint.base_url}: no answer ({type(error).__name__}: {error})"
                    failure = UpstreamError(502, reason, target, attempts)
                    if not last:
                        await asyncio.sleep(self._wait(attempt, None))
                    continue
                if response.status >= 500:
                    self._failed(endpoint, breaker)
                elif breaker.succeeded():
                    logger.info("model server answers again", endpoint=endpoint.base_url)
                if response.status not in RETRIED or (last and last_target):
                    return Reply(target, response, attempts, breaker)
                wait = self._wait(attempt, response.headers.get("retry-after"))
                if last_target and (wait > MOST_RETRY_AFTER_S or breaker.open_until > 0.0):
                    return Reply(target, response, attempts, breaker)
                response.close()
                breaker.inflight -= 1
                failure = UpstreamError(
                    502, f"{endpoint.base_url}: status {response.status}", target, attempts
                )
                if last or wait > MOST_RETRY_AFTER_S:
                    break
                await asyncio.sleep(wait)
        assert failure is not None  # noqa: S101 - there is at least one target
        raise failure

    async def _send(
        self,
        endpoint: Endpoint,
        path: str,
        content: bytes,
        headers: Mapping[str, str],
        breaker: Breaker,
    ) -> aiohttp.ClientResponse:
        assert self._session is not None  # noqa: S101 - started
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=self.config.connect_timeout_s,
            sock_read=endpoint.timeout_s or self._timeout_s,
        )
        breaker.inflight += 1
        try:
            return await self._session.post(
                endpoint.base_url.rstrip("/") + path,
                data=content,
                headers={**headers, **_authorization(endpoint)},
                timeout=timeout,
                allow_redirects=False,
            )
        except BaseException as error:
            breaker.inflight -= 1
            if not isinstance(
                error, aiohttp.ClientError | OSError
            ):  # cancelled, or its key is not set
                breaker.given_up()
            raise

    def _failed(self, endpoint: Endpoint, breaker: Breaker) -> None:
        if breaker.failed(self.config):
            logger.warning(
                "model server left alone", endpoint=endpoint.base_url, failures=breaker.failures
            )

    def _wait(self, attempt: int, retry_after: str | None) -> float:
        jittered = random.uniform(  # noqa: S311
            0, min(self.config.most_backoff_s, self.config.backoff_s * 2**attempt)
        )
        return max(jittered, seconds_of(retry_after, now()) if retry_after is not None else 0.0)

    async def _probe_forever(self) -> None:
        while True:
            await asyncio.sleep(self.config.health_interval_s)
            for base_url, breaker in list(self.breakers.items()):
                if breaker.open_until > 0.0:
                    await self._probe(base_url, breaker)

    async def _probe(self, base_url: str, breaker: Breaker) -> None:
        """Ask a server that is left alone for its models; any answer below 500 says that it is
        back.
        """
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
        breaker.succeeded()
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


def _content(body: dict[str, Any], endpoint: Endpoint) -> bytes:
    try:
        check_address(endpoint.base_url)
        return orjson.dumps({**_asking_for_tokens(body, endpoint), "model": endpoint.model})
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


def _asking_for_tokens(body: dict[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    """Return a body that asks for token ids and log-probabilities, where the server says them."""
    if not endpoint.tokens:
        return body
    if "messages" in body:
        return {"return_token_ids": True, **body, "logprobs": True}
    if "prompt" in body:
        return {"return_token_ids": True, "logprobs": 1, **body}
    return body
