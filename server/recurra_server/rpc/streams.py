"""The streams that are open: told when the server shuts down, and ended when its patience is over."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Protocol

from recurra_server.telemetry.metrics import EdgeCounts


class OpenStream(Protocol):
    """A stream of any API."""

    def announce(self, grace: float) -> None:
        """Tell the caller that the server shuts down, and in how many seconds the stream is ended."""
        ...

    def expel(self) -> None:
        """Read no more, answer what was read, and end the stream with DRAINING."""
        ...


class OpenStreams:
    """All streams of all APIs."""

    def __init__(self, edge: EdgeCounts) -> None:
        self._edge = edge
        self._streams: set[OpenStream] = set()
        self._none = asyncio.Event()
        self._grace: float | None = None  # set while the server shuts down

    def __len__(self) -> int:
        """How many there are."""
        return len(self._streams)

    @contextlib.contextmanager
    def opened(self, stream: OpenStream) -> Iterator[None]:
        """Count a stream for the length of a `with` block."""
        self._streams.add(stream)
        self._edge.streams += 1
        if self._grace is not None:
            stream.announce(self._grace)
        try:
            yield
        finally:
            self._streams.discard(stream)
            self._edge.streams -= 1
            if not self._streams:
                self._none.set()

    async def drain(self, grace: float) -> None:
        """Tell all streams to move; return when they have ended, or have been ended after `grace` seconds."""
        self._grace = grace
        for stream in self._streams:
            stream.announce(grace)
        for patience in (grace, 1.0):
            self._none.clear()
            if self._streams:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._none.wait(), patience)
            for stream in self._streams:
                stream.expel()
