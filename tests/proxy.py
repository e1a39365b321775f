"""A network that delays: TCP proxies on loopback that hold back every piece of data for a random
while.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random

HOST = "127.0.0.1"
PIECE = 65_536


@dataclass
class Proxy:
    """Listens on `port` and passes on to `target`, each piece of data `longest_s` late at most."""

    target: int = 0
    longest_s: float = 0.02
    port: int = 0
    random: Random = field(default_factory=lambda: Random(5))

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        """Pass on connections until told to stop."""
        server = await asyncio.start_server(self._connect, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, self.target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass_on(reader, far_writer), self._pass_on(far_reader, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):  # a side that was killed hangs up on the other
            while piece := await reader.read(PIECE):
                await asyncio.sleep(self.random.uniform(0, self.longest_s))
                writer.write(piece)
                await writer.drain()
        writer.close()


@contextmanager
def proxies(count: int) -> Iterator[list[Proxy]]:
    """Run proxies whose targets are set later."""
    made = [Proxy() for _ in range(count)]
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    ready = [threading.Event() for _ in made]

    async def run() -> None:
        await asyncio.gather(
            *(proxy.serve(event, stop) for proxy, event in zip(made, ready, strict=True))
        )
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), name="proxies")
    thread.start()
    for event in ready:
        event.wait()
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
