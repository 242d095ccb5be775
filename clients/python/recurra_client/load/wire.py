"""One gRPC stream, spoken directly in HTTP/2: the least a client can cost.

A gRPC library's stream costs 50 to 200 microseconds of processor time a step in Python, several times
what the server takes. A load generator needs little of what it does: its requests are the same bytes again
and again. Here a step costs one write of a prepared frame and a glance at the frame that comes back.

Frames and settings are those of RFC 9113; messages are framed as gRPC over HTTP/2 has it
(https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md); headers are written with the literal
representation of RFC 7541, which needs no tables.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_PADDED = 8
_INITIAL_WINDOW: Final = 4
_DEFAULT_WINDOW: Final = 65_535
_LARGEST_WINDOW: Final = 2**31 - 1
_STREAM: Final = 1
_UPDATE_AFTER: Final = 1 << 24


class StreamEndedError(Exception):
    """The server ended the stream or the connection."""


class WireStream(asyncio.Protocol):
    """A bidirectional gRPC stream on a connection of its own.

    Args:
        authority: "host:port", as the server is to see it.
        path: "/package.Service/Method".
        received: Called with each message of the server.
        ended: Called once, when the stream is over.
    """

    def __init__(
        self, authority: str, path: str, received: Callable[[bytes], None], ended: Callable[[], None]
    ) -> None:
        self._head = _headers(authority, path)
        self._received = received
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._buffer = b""  # a frame that has not come whole
        self._message = b""  # a message that has not come whole
        self._unacknowledged = 0
        self._windows = [_DEFAULT_WINDOW, _DEFAULT_WINDOW]  # what may be sent: on the connection, on the stream
        self._initial_window = _DEFAULT_WINDOW
        self._waiting: list[bytes] = []

    @classmethod
    async def connect(
        cls, host: str, port: int, path: str, received: Callable[[bytes], None], ended: Callable[[], None]
    ) -> "WireStream":
        """Connect and begin the stream.

        Raises:
            OSError: The server cannot be reached.
        """
        loop = asyncio.get_running_loop()
        _, stream = await loop.create_connection(lambda: cls(f"{host}:{port}", path, received, ended), host, port)
        return stream

    def send(self, message: bytes) -> None:
        """Send a message, made by `prepare`."""
        size = len(message) - 9
        windows = self._windows
        if self._waiting or size > windows[0] or size > windows[1]:
            self._waiting.append(message)
            return
        windows[0] -= size
        windows[1] -= size
        if self._transport is None:
            raise StreamEndedError
        self._transport.write(message)

    def close(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin: settings, a large window, the request's headers."""
        self._transport = transport = cast("asyncio.Transport", transport)
        settings = _INITIAL_WINDOW.to_bytes(2) + _LARGEST_WINDOW.to_bytes(4)
        update = (_LARGEST_WINDOW - _DEFAULT_WINDOW).to_bytes(4)
        transport.write(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, settings)
            + _frame(_WINDOW_UPDATE, 0, 0, update)
            + _frame(_HEADERS, _END_HEADERS, _STREAM, self._head)
        )

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        """Say so, once."""
        if self._transport is not None:
            self._transport = None
            self._ended()

    def data_received(self, data: bytes) -> None:
        """Take frames apart."""
        if self._buffer:
            data = self._buffer + data
        position, end = 0, len(data)
        while end - position >= 9:
            size = int.from_bytes(data[position : position + 3])
            following = position + 9 + size
            if following > end:
                break
            kind = data[position + 3]
            if kind == _DATA:
                self._data(data[position + 9 : following], data[position + 4])
            else:
                self._control(kind, data[position + 4], data[position + 9 : following], data[position + 5 : position + 9])
            position = following
        self._buffer = data[position:] if position < end else b""

    def _data(self, payload: bytes, flags: int) -> None:
        self._unacknowledged += len(payload)
        if self._unacknowledged >= _UPDATE_AFTER and self._transport is not None:
            update = self._unacknowledged.to_bytes(4)
            self._transport.write(_frame(_WINDOW_UPDATE, 0, 0, update) + _frame(_WINDOW_UPDATE, 0, _STREAM, update))
            self._unacknowledged = 0
        if flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if self._message:
            payload = self._message + payload
        # Five bytes stand before each message: whether it is compressed, and its length.
        while len(payload) >= 5:
            following = 5 + int.from_bytes(payload[1:5])
            if following > len(payload):
                break
            self._received(payload[5:following])
            payload = payload[following:]
        self._message = payload

    def _control(self, kind: int, flags: int, payload: bytes, stream: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        if kind == _PING and not flags & _ACK:
            transport.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _SETTINGS and not flags & _ACK:
            self._settings(payload)
            transport.write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _WINDOW_UPDATE:
            self._windows[0 if stream == bytes(4) else 1] += int.from_bytes(payload) & _LARGEST_WINDOW
            self._send_waiting()
        elif kind in (_RST_STREAM, _GOAWAY) or (kind == _HEADERS and flags & _END_STREAM):
            transport.close()

    def _settings(self, payload: bytes) -> None:
        for start in range(0, len(payload), 6):
            if int.from_bytes(payload[start : start + 2]) == _INITIAL_WINDOW:
                window = int.from_bytes(payload[start + 2 : start + 6])
                self._windows[1] += window - self._initial_window
                self._initial_window = window
        self._send_waiting()

    def _send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            self.send(message)


def prepare(message: bytes) -> bytes:
    """The frame that carries a message, to be sent any number of times; at most 16 KiB, the size every server takes."""
    if len(message) + 5 > 16_384:
        raise ValueError(f"a message of {len(message)} bytes does not fit into one frame")
    return _frame(_DATA, 0, _STREAM, b"\0" + len(message).to_bytes(4) + message)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _headers(authority: str, path: str) -> bytes:
    """The request's headers: entries 3 (POST) and 6 (http) of the static table, the rest as literals."""
    return (
        b"\x83\x86"
        + _literal(4, path)
        + _literal(1, authority)
        + b"\x0f\x10"
        + _string("application/grpc")  # 31: content-type
        + b"\x00"
        + _string("te")
        + _string("trailers")
    )


def _literal(name: int, value: str) -> bytes:
    return bytes((name,)) + _string(value)


def _string(text: str) -> bytes:
    data = text.encode()
    if len(data) > 126:
        raise ValueError(f"{text[:40]}... is too long for a header")
    return bytes((len(data),)) + data
