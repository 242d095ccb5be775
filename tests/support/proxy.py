"""A TCP proxy whose connections can be cut: a bad network between a client and a server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_BLOCK = 65_536


class TcpProxy:
    """Passes bytes on between those who connect and `upstream`.

    Attributes:
        upstream: "host:port" that new connections are passed on to.
        target: "host:port" to connect to.
        cuts: How often connections were cut.
        hold_replies: Swallow what comes from upstream.
        delay: Seconds that each block of bytes takes on its way, in either direction.
        cut_after: Cut a connection once so many bytes have come from upstream on it; None: never.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.target = ""
        self.cuts = 0
        self.hold_replies = False
        self.delay = 0.0
        self.cut_after: int | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._held = asyncio.Event()

    async def start(self) -> None:
        """Listen on a free port, or again on the same one."""
        port = int(self.target.rpartition(":")[2]) if self.target else 0
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        self.target = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Refuse new connections and cut those there are."""
        if self._server is not None:
            self._server.close()
        self.cut()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> None:
        """Cut all connections at once, as by a pulled plug: without a goodbye."""
        self.cuts += bool(self._writers)
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def held(self) -> None:
        """Wait until a reply has been swallowed."""
        self._held.clear()
        await self._held.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.upstream.rpartition(":")
        try:
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        for task in (
            asyncio.create_task(self._pump(reader, up_writer, from_upstream=False)),
            asyncio.create_task(self._pump(up_reader, writer, from_upstream=True)),
        ):
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_upstream: bool) -> None:
        passed = 0
        try:
            while data := await reader.read(_BLOCK):
                if from_upstream and self.hold_replies:
                    self._held.set()
                    continue
                if self.delay:
                    await asyncio.sleep(self.delay)
                passed += len(data)
                if from_upstream and self.cut_after is not None and passed > self.cut_after:
                    self.cut()
                    return
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


@asynccontextmanager
async def tcp_proxy(upstream: str) -> AsyncIterator[TcpProxy]:
    """A proxy for the length of an `async with` block."""
    proxy = TcpProxy(upstream)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
