"""A lane of HTTP/1.1 over one connection: as lean as the wire client for gRPC is."""

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from recurra_client.load.judges import Judge
from recurra_client.load.lanes import once


class HttpLane(asyncio.Protocol):
    """POSTs the same body again and again; one request at a time."""

    answered: Callable[[Sequence[str]], None]
    failed: Callable[[Exception], None]  # never between two requests

    def __init__(self, target: str, path: str, first: bytes, following: bytes, judge: Judge) -> None:
        self.sessions = 1
        self._request = request(target, path, first)
        self._following = request(target, path, following)
        self._judge = judge
        self._buffer = b""
        self._closed = False

    @classmethod
    async def connect(cls, target: str, path: str, first: bytes, following: bytes, judge: Judge) -> "HttpLane":
        """Connect to HOST:PORT."""
        host, _, port = target.rpartition(":")
        loop = asyncio.get_running_loop()
        _, lane = await loop.create_connection(lambda: cls(target, path, first, following, judge), host, int(port))
        return lane

    def send(self) -> None:
        """Send the next request."""
        self._transport.write(self._request)
        self._request = self._following

    def send_body(self, target: str, path: str, body: bytes) -> None:
        """Send a request with another body."""
        self._transport.write(request(target, path, body))

    async def open(self) -> None:
        """Send the first request."""
        await once(self)

    async def close(self) -> None:
        """Cut the connection."""
        self.cut()

    def cut(self) -> None:
        """Cut the connection."""
        self._closed = True
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Say so, unless it was us."""
        if not self._closed:
            self.failed(error or ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Take a response: its status line, Content-Length and body."""
        data = self._buffer + data
        self._buffer = data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = data[:end].lower()
        _, _, length = head.partition(b"content-length:")
        size = int(length.split(b"\r\n")[0])
        if len(data) < end + 4 + size:
            return
        self._buffer = data[end + 4 + size :]
        if head[9:12] == b"200":
            self.answered(self._judge(data[end + 4 : end + 4 + size]) or ())
        else:
            self.answered([f"HTTP {head[9:12].decode()}"])


def request(target: str, path: str, body: bytes) -> bytes:
    """A POST with a body."""
    return f"POST {path} HTTP/1.1\r\nHost: {target}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
