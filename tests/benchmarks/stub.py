"""The model server behind the benchmarks, as fast as Python has one: canned answers to chat
completions.

Each answer says in its text how many seconds it was held back (`delay=0.051234`), so that what
others add can be told from it; headers and ids do not come through every gateway.
"""

import argparse
import asyncio
import random
import socket
from typing import cast

import orjson
import uvloop

CHUNKS = 20
MODEL = "tiny"


def _answer() -> bytes:
    message = {"role": "assistant", "content": f"delay={HELD_BACK} " + "hello there " * 20}
    usage = {"prompt_tokens": 200, "completion_tokens": 40, "total_tokens": 240}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    shared = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL}
    return orjson.dumps(shared | {"choices": [choice], "usage": usage})


def _chunks() -> list[bytes]:
    shared = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    first = {"role": "assistant", "content": f"delay={HELD_BACK} "}
    deltas: list[dict[str, str]] = [first, *({"content": "hello "} for _ in range(CHUNKS - 2)), {}]
    said = [
        shared
        | {"choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}]}
        for delta in deltas
    ]
    return [*(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in said), b"data: [DONE]\n\n"]


HELD_BACK = "0.000000"
ANSWER = _answer()
STREAM = _chunks()


class Stub(asyncio.Protocol):
    """One connection. Pipelined requests are answered in order only without delays, as all clients
    here send them.
    """

    delay_s = 0.0

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            start = head.find(b"content-length:")
            length = int(head[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body, self._buffer = (
                self._buffer[end + 4 : end + 4 + length],
                self._buffer[end + 4 + length :],
            )
            delay = random.uniform(0.5, 1.5) * self.delay_s
            self._after(delay, b'"stream":true' in body.replace(b" ", b""), delay)

    def _after(self, wait: float, streamed: bool, delay: float) -> None:
        if wait:
            self._loop.call_later(wait, self._respond, streamed, delay)
        else:
            self._respond(streamed, delay)

    def _respond(self, streamed: bool, delay: float) -> None:
        said = b"%.6f" % delay
        head = b"HTTP/1.1 200 OK\r\n"
        if not streamed:
            head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
            self._write(head + ANSWER.replace(HELD_BACK.encode(), said))
            return
        self._write(head + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        self._next(0, said)

    def _next(self, number: int, said: bytes) -> None:
        if number == len(STREAM):
            self._write(b"0\r\n\r\n")
            return
        chunk = STREAM[number].replace(HELD_BACK.encode(), said)
        self._write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self._loop.call_later(0.001, self._next, number + 1, said)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


async def _serve(listener: socket.socket) -> None:
    server = await asyncio.get_running_loop().create_server(Stub, sock=listener)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0.0, help="mean seconds before an answer")
    options = parser.parse_args()
    Stub.delay_s = options.delay
    uvloop.run(_serve(socket.socket(fileno=options.fd)))
