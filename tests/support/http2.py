"""HTTP/2 as somebody speaks it who does not keep to its manners: frames by hand, over a plain connection."""

import socket
from collections.abc import Iterator
from typing import Final

from hpack import Encoder
from hyperframe.frame import Frame, HeadersFrame, SettingsFrame

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Rude:
    """A connection whose every frame is the test's.

    Attributes:
        closed: Whether the server has closed it.
    """

    def __init__(self, target: str, *, preface: bool = True, settings: dict[int, int] | None = None) -> None:
        host, _, port = target.rpartition(":")
        self.target = target
        self.socket = socket.create_connection((host, int(port)), 30)
        self.closed = False
        self._encoder, self._buffer = Encoder(), b""
        if preface:
            self.raw(PREFACE)
            self.send(SettingsFrame(0, settings=settings or {}))

    def __enter__(self) -> "Rude":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def raw(self, data: bytes) -> bool:
        """Send bytes; False where the server has hung up."""
        try:
            self.socket.sendall(data)
        except OSError:
            self.closed = True
        return not self.closed

    def send(self, *frames: Frame) -> bool:
        """Send frames."""
        return self.raw(b"".join(frame.serialize() for frame in frames))

    def headers(self, path: str | bytes = "/grpc.health.v1.Health/Check", **more: str | bytes) -> bytes:
        """The headers of a call, compressed."""
        fields = [
            (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", self.target),
            ("content-type", "application/grpc"), ("te", "trailers"), *more.items(),
        ]  # fmt: skip
        block: bytes = self._encoder.encode(fields)
        return block

    def call(
        self, number: int, path: str | bytes = "/grpc.health.v1.Health/Check", **more: str | bytes
    ) -> HeadersFrame:
        """A call's first frame."""
        return HeadersFrame(number, self.headers(path, **more), flags=["END_HEADERS"])

    def frames(self, timeout: float = 30.0) -> Iterator[Frame]:
        """What the server sends until it closes the connection.

        Raises:
            TimeoutError: Nothing comes for so long.
        """
        self.socket.settimeout(timeout)
        while True:
            while len(self._buffer) >= 9:
                frame, length = Frame.parse_frame_header(memoryview(self._buffer[:9]))
                if len(self._buffer) < 9 + length:
                    break
                frame.parse_body(memoryview(self._buffer[9 : 9 + length]))
                self._buffer = self._buffer[9 + length :]
                if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
                    self.send(SettingsFrame(0, flags=["ACK"]))
                yield frame
            try:
                data = self.socket.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                self.closed = True
                return
            self._buffer += data
