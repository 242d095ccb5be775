"""A gRPC server of one connection, on python-hyper's h2: it holds the client to the protocol and echoes its messages.

What is sent to the client can be shaped: cut into pieces, padded, spread over frames.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    RequestReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)  # fmt: skip
from h2.settings import SettingCodes, Settings

Behaviour = Callable[["Peer", int, bytes], None]
"""Is called with each message of a stream."""


class Peer(asyncio.Protocol):
    """One connection.

    Attributes:
        requests: The headers of each stream.
        messages: What each stream has sent, message by message.
        pings: Acknowledged pings.
        settings: Acknowledged settings.
        ended: Streams that the client has ended or reset.
        piece: Bytes of one write; 0: all at once.
        padding: Bytes of padding in each DATA frame.
        frame: Most bytes of a message in one DATA frame.
        withhold: Give the client no window for what it sends.
    """

    def __init__(self, behave: Behaviour, *, window: int = 65_535) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.local_settings = Settings(client=False, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.requests: dict[int, dict[str, str]] = {}
        self.messages: dict[int, list[bytes]] = defaultdict(list)
        self.pings = self.settings = 0
        self.ended: list[int] = []
        self.piece = self.padding = 0
        self.frame = 16_000
        self.withhold = False
        self.closed = asyncio.get_running_loop().create_future()
        self._behave = behave
        self._partial: dict[int, bytes] = defaultdict(bytes)
        self._outgoing: dict[int, bytearray] = defaultdict(bytearray)
        self._trailers: dict[int, list[tuple[str, str]]] = {}
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something has come that makes it true."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.h2.initiate_connection()
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            self._take(event)
        self.flush()
        self._changed.set()

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self.requests[event.stream_id] = {str(k): str(v) for k, v in event.headers}
            self.h2.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
        elif isinstance(event, DataReceived):
            if not self.withhold:
                self._give_back(event.flow_controlled_length, event.stream_id)
            self._take_data(event.stream_id, event.data)
        elif isinstance(event, WindowUpdated):
            self._drain(event.stream_id or None)
        elif isinstance(event, PingAckReceived):
            self.pings += 1
        elif isinstance(event, SettingsAcknowledged):
            self.settings += 1
        elif isinstance(event, (StreamEnded, StreamReset)):
            self.ended.append(event.stream_id)
        elif isinstance(event, ConnectionTerminated):
            raise AssertionError(event)

    def _give_back(self, size: int, stream: int) -> None:
        """At once and exactly: h2's own way saves frames."""
        if size:
            self.h2.increment_flow_control_window(size)
            self.h2.increment_flow_control_window(size, stream)

    def _take_data(self, stream: int, data: bytes) -> None:
        data = self._partial[stream] + data
        while len(data) >= 5 and len(data) >= (end := 5 + int.from_bytes(data[1:5])):
            self.messages[stream].append(data[5:end])
            self._behave(self, stream, data[5:end])
            data = data[end:]
        self._partial[stream] = data

    def send(self, stream: int, *messages: bytes) -> None:
        """Send messages, as many in one frame as it holds."""
        self._outgoing[stream] += b"".join(b"\0" + len(m).to_bytes(4) + m for m in messages)
        self._drain(stream)

    def end(self, stream: int, trailers: Iterable[tuple[str, str]]) -> None:
        """End a stream, once all is sent."""
        self._trailers[stream] = list(trailers)
        self._drain(stream)

    def _drain(self, only: int | None = None) -> None:
        for stream in [only] if only else list(self._outgoing):
            while self._outgoing[stream]:
                room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
                size = min(self.frame, room - (self.padding + 1 if self.padding else 0), len(self._outgoing[stream]))
                if size <= 0:
                    break
                self.h2.send_data(stream, bytes(self._outgoing[stream][:size]), pad_length=self.padding or None)
                del self._outgoing[stream][:size]
            if not self._outgoing[stream] and stream in self._trailers:
                self.h2.send_headers(stream, self._trailers.pop(stream), end_stream=True)
        self.flush()

    def flush(self) -> None:
        """Write what h2 has ready."""
        data = self.h2.data_to_send()
        step = self.piece or len(data) or 1
        for begin in range(0, len(data), step):
            self.transport.write(data[begin : begin + step])


def echo(peer: Peer, stream: int, message: bytes) -> None:
    """Answer each message with itself."""
    peer.send(stream, message)


@asynccontextmanager
async def listening(
    behave: Behaviour = echo, *, window: int = 65_535
) -> AsyncIterator[tuple[str, asyncio.Queue[Peer]]]:
    """A peer behind a port: HOST:PORT, and the connections made to it, as they come."""
    peers: list[Peer] = []
    queue: asyncio.Queue[Peer] = asyncio.Queue()

    def accept() -> Peer:
        peers.append(Peer(behave, window=window))
        queue.put_nowait(peers[-1])
        return peers[-1]

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}", queue
    finally:
        server.close()
        for peer in peers:
            peer.transport.abort()
