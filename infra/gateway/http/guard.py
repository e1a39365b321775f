"""The shell around every request: its limits, its security headers, its line in the log."""

import asyncio
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.gateway.http.problems import problem

# Browsers and proxies send some 2 KiB of headers; these leave room and bound memory.
MOST_HEADERS = 100
MOST_HEADER_BYTES = 32 * 1024
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
]
"""What an API needs
(https://cheatsheetseries.owasp.org/cheatsheets/REST_Security_Cheat_Sheet.html).
"""

logger = structlog.get_logger(__name__)


class Shell:
    """ASGI middleware around the application.

    Args:
        body_timeout_s: longest silence while a body is received.
        access_log: whether every request is a line of the log.
    """

    def __init__(self, app: ASGIApp, body_timeout_s: float, access_log: bool) -> None:
        self._app = app
        self._body_timeout_s = body_timeout_s
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 0
        complete = False

        async def receive_in_time() -> Message:
            nonlocal complete
            # After the body only the end of the connection comes, and that may come late.
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(self._body_timeout_s):
                    message = await receive()
            except TimeoutError:
                complete = True
                return {"type": "http.disconnect"}
            complete = not message.get("more_body", False)
            return message

        async def send_secured(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *SECURITY_HEADERS]
            await send(message)

        headers: list[tuple[bytes, bytes]] = scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > MOST_HEADERS or size > MOST_HEADER_BYTES:
            detail = (
                f"{len(headers)} headers of {size} bytes;"
                f" the most are {MOST_HEADERS} of {MOST_HEADER_BYTES} bytes"
            )
            await problem(431, "Headers too large", detail)(scope, receive, send_secured)
        else:
            await self._app(scope, receive_in_time, send_secured)
        if self._access_log:
            logger.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                duration_s=round(time.perf_counter() - begun, 6),
                trace_id=scope.get("state", {}).get("trace_id"),
            )
