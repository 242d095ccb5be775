"""gRPC streams spoken directly in HTTP/2: the least a client can cost.

A gRPC library's stream costs 50 to 200 microseconds of processor time a step in Python, several times
what the server takes. A load generator needs little of what it does: its requests are the same bytes again
and again. Here a step costs one write of a prepared frame and a glance at the frame that comes back.

Complete in what a client needs of RFC 9113: flow control both ways, settings, pings, padding, and every way a stream
can end. No encryption, no compression.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, cast

from hpack import Decoder, HPACKError

from recurra_client.load import frames as f
from recurra_client.load.frames import StreamEndedError

_UPDATE_AFTER: Final = 1 << 24  # bytes received and not yet acknowledged

Frames = tuple[bytes, ...]


class WireStream:
    """One call on a connection; made by `WireConnection.open`."""

    __slots__ = (
        "_connection", "_ended", "_headers", "_number", "_partial", "_pending", "_received", "_unacknowledged", "over",
        "window",
    )  # fmt: skip

    def __init__(
        self,
        connection: "WireConnection",
        number: int,
        received: Callable[[bytes], None],
        ended: Callable[[StreamEndedError | None], None],
    ) -> None:
        self.window = connection.initial_window  # bytes that may be sent
        self.over = False
        self._connection = connection
        self._number = number
        self._received = received
        self._ended = ended
        self._partial = b""  # a message that has not come whole
        self._pending: deque[bytes] = deque()  # frames for which there is no window
        self._unacknowledged = 0
        self._headers: dict[str, str] = {}

    def prepare(self, message: bytes, *, last: bool = False) -> Frames:
        """The frames that carry a message on this stream, to be sent any number of times.

        Args:
            message: A serialised protobuf message.
            last: End our side of the stream with it.
        """
        data = b"\0" + len(message).to_bytes(4) + message
        begins = range(0, len(data), f.LARGEST_FRAME)
        return tuple(
            f.frame(
                f.DATA,
                f.END_STREAM if last and begin == begins[-1] else 0,
                self._number,
                data[begin : begin + f.LARGEST_FRAME],
            )
            for begin in begins
        )

    def send(self, frames: Frames) -> None:
        """Send a message made by `prepare`, as soon as the server gives room for it."""
        connection = self._connection
        for frame in frames:
            size = len(frame) - f.HEAD
            if self._pending or size > self.window or size > connection.window:
                self._pending.append(frame)
                self.flush()
            else:
                self.window -= size
                connection.window -= size
                connection.write(frame)

    def cancel(self) -> None:
        """End the call at once; nothing is reported any more."""
        if not self.over:
            self.over = True
            self._connection.forget(self._number)
            self._connection.write(f.frame(f.RST_STREAM, 0, self._number, f.CANCEL.to_bytes(4)))

    def take(self, payload: bytes, flags: int) -> None:
        """A DATA frame has come."""
        self._unacknowledged += len(payload)
        if self._unacknowledged >= _UPDATE_AFTER:
            self._connection.write(f.frame(f.WINDOW_UPDATE, 0, self._number, self._unacknowledged.to_bytes(4)))
            self._unacknowledged = 0
        if flags & f.PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if self._partial:
            payload = self._partial + payload
        # Five bytes stand before each message: whether it is compressed, and its length.
        while len(payload) >= 5:
            following = 5 + int.from_bytes(payload[1:5])
            if following > len(payload):
                break
            self._received(payload[5:following])
            payload = payload[following:]
        self._partial = payload

    def take_headers(self, headers: Mapping[str, str]) -> None:
        """Headers or trailers have come."""
        self._headers.update(headers)

    def flush(self) -> None:
        """There may be room for frames that wait; a frame that is larger than the room is cut."""
        pending, connection = self._pending, self._connection
        while pending:
            frame = pending.popleft()
            size = len(frame) - f.HEAD
            room = min(self.window, connection.window)
            if size > room:
                if room <= 0:
                    pending.appendleft(frame)
                    return
                begin, flags = f.HEAD + room, frame[4]
                pending.appendleft(f.frame(f.DATA, flags, self._number, frame[begin:]))
                frame, size = f.frame(f.DATA, 0, self._number, frame[f.HEAD : begin]), room
            self.window -= size
            connection.window -= size
            connection.write(frame)

    def finish(self, error: StreamEndedError | None = None) -> None:
        """The stream is over: with the status in its headers, unless it was cut."""
        self.over = True
        self._ended(error or f.status_of(self._headers))


class WireConnection(asyncio.Protocol):
    """An HTTP/2 connection, and the streams on it.

    Attributes:
        window: Bytes that may be sent, on all streams together.
        initial_window: Bytes that may be sent on a new stream.
    """

    def __init__(self, authority: str, token: str = "") -> None:
        self.window = self.initial_window = f.DEFAULT_WINDOW
        self._authority = authority
        self._token = token
        self._transport: asyncio.Transport | None = None
        self._streams: dict[bytes, WireStream] = {}  # by number, as it stands in a frame
        self._next = 1
        self._buffer = b""  # a frame that has not come whole
        self._unacknowledged = 0
        self._decoder = Decoder()
        self._block = b""  # headers that have not come whole
        self._ends = False  # the stream ends with them
        self._requests: dict[str, bytes] = {}  # headers by path
        self._lost = StreamEndedError("UNAVAILABLE", "the server closed the connection")
        self._going = False  # the server takes no new streams

    @classmethod
    async def connect(cls, target: str, encryption: ssl.SSLContext | None = None, token: str = "") -> "WireConnection":
        """Connect to HOST:PORT.

        Raises:
            OSError: The server cannot be reached.
        """
        host, _, port = target.rpartition(":")
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: cls(target, token), host.strip("[]"), int(port), ssl=encryption
        )
        return connection

    def open(
        self, path: str, received: Callable[[bytes], None], ended: Callable[[StreamEndedError | None], None]
    ) -> WireStream:
        """Begin a call.

        Args:
            path: "/package.Service/Method".
            received: Called with each message of the server.
            ended: Called once, when the server has ended the stream: with None where its status is OK.

        Raises:
            StreamEndedError: The connection is gone, or is going.
        """
        if self._transport is None or self._going:
            raise self._lost
        if path not in self._requests:
            self._requests[path] = f.request(self._authority, path, self._token)
        stream = WireStream(self, self._next, received, ended)
        self._streams[self._next.to_bytes(4)] = stream
        self.write(f.frame(f.HEADERS, f.END_HEADERS, self._next, self._requests[path]))
        self._next += 2
        return stream

    def write(self, frame: bytes) -> None:
        """Write a frame; where the connection is gone, `ended` has said so."""
        if self._transport is not None:
            self._transport.write(frame)

    def forget(self, number: int) -> None:
        """Take nothing more for a stream."""
        self._streams.pop(number.to_bytes(4), None)

    def close(self) -> None:
        """Cut the connection; nothing is reported any more."""
        self._streams.clear()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin: no pushes, and windows so large that the server never waits for us."""
        self._transport = cast("asyncio.Transport", transport)
        settings = f.setting(f.ENABLE_PUSH, 0) + f.setting(f.INITIAL_WINDOW, f.LARGEST_WINDOW)
        update = (f.LARGEST_WINDOW - f.DEFAULT_WINDOW).to_bytes(4)
        self.write(f.PREFACE + f.frame(f.SETTINGS, 0, 0, settings) + f.frame(f.WINDOW_UPDATE, 0, 0, update))

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the streams are told all that helps
        """End all streams."""
        self._transport = None
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.finish(self._lost)

    def data_received(self, data: bytes) -> None:
        """Take frames apart."""
        if self._buffer:
            data = self._buffer + data
        position, end = 0, len(data)
        while end - position >= f.HEAD:
            size = int.from_bytes(data[position : position + 3])
            following = position + f.HEAD + size
            if following > end:
                if size > f.LARGEST_FRAME:
                    self._abort("it does not speak HTTP/2")
                    return
                break
            kind, flags = data[position + 3], data[position + 4]
            number = data[position + 5 : position + f.HEAD]
            payload = data[position + f.HEAD : following]
            if kind == f.DATA:
                self._unacknowledged += size
                stream = self._streams.get(number)
                if stream is not None:
                    stream.take(payload, flags)
                    if flags & f.END_STREAM:
                        self._finish(number)
            else:
                self._control(kind, flags, number, payload)
            position = following
        self._buffer = data[position:] if position < end else b""
        if self._unacknowledged >= _UPDATE_AFTER:
            self.write(f.frame(f.WINDOW_UPDATE, 0, 0, self._unacknowledged.to_bytes(4)))
            self._unacknowledged = 0

    def _control(self, kind: int, flags: int, number: bytes, payload: bytes) -> None:
        if kind == f.PING and not flags & f.ACK:
            self.write(f.frame(f.PING, f.ACK, 0, payload))
        elif kind == f.SETTINGS and not flags & f.ACK:
            self.write(f.frame(f.SETTINGS, f.ACK, 0, b""))  # before what the settings give room for
            self._settings(payload)
        elif kind == f.WINDOW_UPDATE:
            self._window_update(number, int.from_bytes(payload) & f.LARGEST_WINDOW)
        elif kind in (f.HEADERS, f.CONTINUATION):
            self._headers(kind, flags, number, payload)
        elif kind == f.RST_STREAM:
            self._finish(
                number, StreamEndedError("UNAVAILABLE", f"the server reset the stream ({f.reset_reason(payload)})")
            )
        elif kind == f.GOAWAY:
            self._goaway(payload)

    def _settings(self, payload: bytes) -> None:
        for start in range(0, len(payload), 6):
            if int.from_bytes(payload[start : start + 2]) == f.INITIAL_WINDOW:
                window = int.from_bytes(payload[start + 2 : start + 6])
                for stream in self._streams.values():
                    stream.window += window - self.initial_window
                self.initial_window = window
        self._flush()

    def _window_update(self, number: bytes, size: int) -> None:
        if number == bytes(4):
            self.window += size
            self._flush()
        elif (stream := self._streams.get(number)) is not None:
            stream.window += size
            stream.flush()

    def _flush(self) -> None:
        for stream in self._streams.values():
            stream.flush()

    def _headers(self, kind: int, flags: int, number: bytes, payload: bytes) -> None:
        if kind == f.HEADERS:
            self._ends = bool(flags & f.END_STREAM)
            if flags & f.PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            if flags & f.PRIORITY:
                payload = payload[5:]
        self._block += payload
        if not flags & f.END_HEADERS:
            return
        block, self._block = self._block, b""
        try:
            headers = {str(name): str(value) for name, value in self._decoder.decode(block)}
        except HPACKError:
            self._abort("it sent headers that cannot be read")
            return
        stream = self._streams.get(number)
        if stream is not None:
            stream.take_headers(headers)
            if self._ends:
                self._finish(number)

    def _goaway(self, payload: bytes) -> None:
        """Streams up to the last one that the server names go on; the others it will not serve."""
        self._going = True
        debug = payload[8:].decode(errors="replace")
        self._lost = StreamEndedError("UNAVAILABLE", f"the server is going away{f' ({debug})' if debug else ''}")
        for number in [number for number in self._streams if number > payload[:4]]:
            self._finish(number, self._lost)

    def _finish(self, number: bytes, error: StreamEndedError | None = None) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.finish(error)

    def _abort(self, why: str) -> None:
        self._lost = StreamEndedError("UNAVAILABLE", f"the server is no gRPC server: {why}")
        if self._transport is not None:
            self._transport.abort()
