"""Serving an application on loopback or elsewhere, with clear errors for taken ports."""

import socket

import uvicorn
from fastapi import FastAPI

from infra.config import ConfigError


def bound_socket(host: str, port: int, setting: str) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        ConfigError: the port is taken or the address is not this machine's; `setting` is what to change.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}); set {setting} to another port"
        ) from error
    return listener


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; requests in flight are finished first."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
        proxy_headers=False,  # nothing here asks where a caller is
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[listener])
