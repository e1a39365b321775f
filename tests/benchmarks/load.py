"""The callers of the benchmarks: each keeps one connection and asks again when it has its
answer.
"""

import asyncio
import re
import time
from dataclasses import dataclass, field

import orjson
import uvloop

TEXT = "hi " * 200
HELD_BACK = re.compile(rb"delay=([0-9.]+)")


@dataclass
class Load:
    """What to ask, and what came of it.

    Attributes:
        durations: seconds of each call, without what the model server held back.
        first: seconds until the first text of each streamed answer, the same way.
        failed: calls without an answer of the model server.
        took: seconds of all calls together.
    """

    port: int
    path: str
    concurrency: int
    calls: int
    model: str = "tiny"
    stream: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    durations: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    failed: int = 0
    took: float = 0.0

    def run(self) -> None:
        """Make all calls."""
        uvloop.run(self._all())

    async def _all(self) -> None:
        begun = time.perf_counter()
        each = max(1, self.calls // self.concurrency)
        await asyncio.gather(*(self._caller(each) for _ in range(self.concurrency)))
        self.took = time.perf_counter() - begun

    async def _caller(self, calls: int) -> None:
        body = {"model": self.model, "messages": [{"role": "user", "content": TEXT}]}
        content = orjson.dumps(body | ({"stream": True} if self.stream else {}))
        head = {
            "host": "127.0.0.1",
            "content-type": "application/json",
            "content-length": str(len(content)),
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in (head | self.headers).items())
        request = f"POST {self.path} HTTP/1.1\r\n{lines}\r\n".encode() + content
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**22)
        for _ in range(calls):
            begun = time.perf_counter()
            writer.write(request)
            status, fields = _parsed(await reader.readuntil(b"\r\n\r\n"))
            if "content-length" in fields:
                answer, first = await reader.readexactly(int(fields["content-length"])), None
            else:
                answer, first = await _chunks(reader)
            ended = time.perf_counter()
            found = HELD_BACK.search(answer)
            if status != 200 or found is None:
                self.failed += 1
                continue
            delay = float(found[1])
            self.durations.append(ended - begun - delay)
            if first is not None:
                self.first.append(first - begun - delay)
        writer.close()


async def _chunks(reader: asyncio.StreamReader) -> tuple[bytes, float]:
    """Return a chunked body, and when its first piece with a text was there."""
    pieces: list[bytes] = []
    first = 0.0
    while (size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)) > 0:
        pieces.append((await reader.readexactly(size + 2))[:-2])
        if not first and b"delay=" in pieces[-1]:
            first = time.perf_counter()
    await reader.readexactly(2)
    return b"".join(pieces), first


def _parsed(head: bytes) -> tuple[int, dict[str, str]]:
    status, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return int(status.split()[1]), {name.strip().lower(): value.strip() for name, value in pairs}
