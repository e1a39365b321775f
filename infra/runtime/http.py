"""Servers: how an application is served, with clear errors for ports that are taken."""

import asyncio
import socket
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from infra.runtime.errors import ConfigError

MOST_HEAD_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 20.0


def bound_socket(host: str, port: int, setting: str) -> socket.socket:
    """Return a listening socket. Port 0 takes a free one.

    Raises:
        ConfigError: the port is taken or the address is not this machine's; `setting` is what to
            change.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    # Else a port stays taken for a minute after a server has ended.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Connections wait here while a server is replaced, so the queue must be long.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}); set {setting} to another port"
        ) from error
    return listener


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with two limits on the head of a request: its size and its time. Refusals are
    problem bodies.

    uvicorn bounds neither: a head that never ends would be kept for ever, byte by byte.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._head_bytes = 0
        self._in_head = True
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._cancel_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take in a piece of a request."""
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        # After the parser: it may have found the end of the head in this piece.
        if self._in_head and self._head_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(
                431,
                "Headers too large",
                f"the head of the request is longer than {MOST_HEAD_BYTES} bytes",
            )

    def on_message_begin(self) -> None:
        """Note that a request begins."""
        super().on_message_begin()
        if not self._in_head:  # the next request of a kept connection
            self._await_head()

    def on_headers_complete(self) -> None:
        """Note that the head is complete."""
        self._in_head = False
        self._head_bytes = 0
        self._cancel_deadline()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP."""
        self._refuse(400, "Malformed request", msg)

    def _await_head(self) -> None:
        self._in_head = True
        self._cancel_deadline()
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._too_slow)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            # A kept connection that sent nothing is only idle. It is closed without an answer.
            if self._head_bytes:
                self._refuse(
                    408,
                    "Too slow",
                    f"the head of the request took longer than {HEAD_TIMEOUT_S:.0f} s",
                )
            else:
                self.transport.close()

    def _refuse(self, status: int, title: str, detail: str) -> None:
        code = title.lower().replace(" ", "_")
        error = {"message": detail, "type": "invalid_request_error", "param": None, "code": code}
        body = orjson.dumps(
            {
                "type": "about:blank",
                "title": title,
                "status": status,
                "detail": detail,
                "error": error,
            }
        )
        head = (
            f"HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def server(app: FastAPI, grace_s: int = 5) -> uvicorn.Server:
    """Return a server of an application.

    Args:
        grace_s: how long requests in flight are waited for when it stops.
    """
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        log_level="error",  # clients that send no HTTP are not worth a line
        access_log=False,
        timeout_graceful_shutdown=grace_s,
        # longer than clients keep theirs, so that none asks on a connection just closed
        timeout_keep_alive=75,
        proxy_headers=False,  # nothing here asks where a caller is
        server_header=False,
    )
    return uvicorn.Server(config)


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; requests in flight are finished first."""
    server(app).run(sockets=[listener])
