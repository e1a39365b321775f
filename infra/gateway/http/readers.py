"""Reader processes: they work on large documents, so that the gateway's event loop need not wait.

A thread does not help there. To parse or to write a text of many MiB as JSON is one call of a
library, and that call holds Python's interpreter lock for as long as it takes.
"""

import asyncio
import os
import pickle
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from struct import Struct
from typing import Any, ParamSpec, TypeVar

import structlog

from infra.gateway.http.problems import ProblemError
from infra.gateway.http.threads import LARGE_BYTES

P = ParamSpec("P")
T = TypeVar("T")

PIECE_BYTES = 256 * 1024
_SIZE = Struct("!Q")

MOST_READERS = 2
"""Two, so that one request that takes long does not hold up all other large ones."""

MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}
"""A reader keeps up to 128 MiB that it has freed. To get each page of a large array anew from the
system took a third of a decision's time. These are variables of glibc; others ignore them.
"""

logger = structlog.get_logger(__name__)


class ReaderDiedError(ProblemError):
    """A reader process ended in the middle of its work, such as for want of memory."""

    def __init__(self, work: str) -> None:
        super().__init__(503, "Not read", f"the process that reads large documents died in {work}")


class Readers:
    """A few processes that are started when they are first needed, and then kept."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MOST_READERS, thread_name_prefix="reader")
        self._idle: deque[_Reader] = deque()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a function returns, or raise what it raises; a reader calls it.

        Args:
            function: of a module. Arguments and result must be picklable. Bytes that are
                arguments, the result or one of its items are passed on without a copy.

        Raises:
            ReaderDiedError: the process ended.
        """
        assert not kwargs, "readers take positional arguments"  # noqa: S101 - our own calls
        loop = asyncio.get_running_loop()
        result: T = await loop.run_in_executor(self._threads, self._ask, function, args)
        return result

    def close(self) -> None:
        """Stop all readers, after what they work on."""
        self._threads.shutdown()
        while self._idle:
            self._idle.pop().close()

    def _ask(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        # The last one back is the first one out. So a second process starts only when two have
        # work at once.
        reader = self._idle.pop() if self._idle else _Reader()
        try:
            write_message(reader.socket, (function, *arguments))
            succeeded, spread, *results = read_message(reader.socket)
        except (EOFError, OSError) as error:
            reader.close()
            logger.error("a reader process died", work=function.__name__)
            raise ReaderDiedError(function.__name__) from error
        except BaseException:
            reader.close()  # half a message may be on its way
            raise
        self._idle.append(reader)
        if not succeeded:
            raise results[0]
        return tuple(results) if spread else results[0]


class _Reader:
    """One process."""

    def __init__(self) -> None:
        self.socket, its = socket.socketpair()
        command = [sys.executable, "-m", "infra.gateway.http.reader", str(its.fileno())]
        environment = MEMORY | os.environ
        self._process = subprocess.Popen(command, pass_fds=[its.fileno()], env=environment)  # noqa: S603 - our own
        its.close()

    def close(self) -> None:
        """End the process: it stops when nobody can ask it any more."""
        self.socket.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def write_message(to: socket.socket, message: tuple[Any, ...]) -> None:
    """Send a message. Large bytes in it are sent by themselves: `pickle` would copy them in one
    long step.
    """
    large = [isinstance(part, bytes) and len(part) >= LARGE_BYTES for part in message]
    small = [part for part, alone in zip(message, large, strict=True) if not alone]
    frames = [part for part, alone in zip(message, large, strict=True) if alone]
    for frame in (pickle.dumps((large, small)), *frames):
        to.sendall(_SIZE.pack(len(frame)))
        to.sendall(frame)


def read_message(of: socket.socket) -> tuple[Any, ...]:
    """Return the next message.

    Raises:
        EOFError: the other end is closed.
    """
    # Only the gateway and its own reader hold the two ends.
    large, small = pickle.loads(_read_frame(of))  # noqa: S301
    rest = iter(small)
    return tuple(_read_frame(of) if alone else next(rest) for alone in large)


def _read_frame(of: socket.socket) -> bytes:
    (size,) = _SIZE.unpack(_read(of, _SIZE.size))
    return _read(of, size)


def _read(of: socket.socket, size: int) -> bytes:
    pieces = []
    while size > 0:
        piece = of.recv(min(size, PIECE_BYTES))
        if not piece:
            raise EOFError("the other end is closed")
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)  # Python's lock is free while many MiB are joined
