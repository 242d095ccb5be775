"""What is written on the wire: HTTP/2 frames and headers, and how gRPC says that a call is over.

Frames and settings are those of RFC 9113, headers those of RFC 7541; what a call's headers and trailers hold,
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md says.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

import grpc
from hpack import Encoder

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
ACK = END_STREAM = 1
END_HEADERS, PADDED, PRIORITY = 4, 8, 0x20
ENABLE_PUSH, INITIAL_WINDOW = 2, 4  # settings
CANCEL: Final = 8
HEAD: Final = 9  # bytes before a frame's payload
LARGEST_FRAME: Final = 16_384  # until a peer says otherwise, and we don't
DEFAULT_WINDOW: Final = 65_535
LARGEST_WINDOW: Final = 2**31 - 1

_RESETS: Final = {0: "no error", 2: "an internal error", 7: "refused", CANCEL: "cancelled", 11: "too much asked"}
_CODES: Final = {str(code.value[0]): code.name for code in grpc.StatusCode}


class StreamEndedError(Exception):
    """The server ended the stream, or the connection went.

    Attributes:
        code: Name of the gRPC status code.
        message: Why, in one line.
        trailers: The trailing metadata, where some came.
    """

    def __init__(self, code: str, message: str, trailers: Mapping[str, str] | None = None) -> None:
        super().__init__(code, message, trailers)  # as they were given, so that it can go to another process
        self.code = code
        self.message = message
        self.trailers = dict(trailers or {})

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def setting(name: int, value: int) -> bytes:
    return name.to_bytes(2) + value.to_bytes(4)


def request(authority: str, path: str, token: str = "") -> bytes:
    """The headers of a call, marked as never to be indexed: so the same bytes can begin every call."""
    headers = [
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority),
        ("content-type", "application/grpc"), ("te", "trailers"),
    ]  # fmt: skip
    if token:
        headers.append(("authorization", f"Bearer {token}"))
    return Encoder().encode([(name, value, True) for name, value in headers], huffman=False)


def status_of(headers: Mapping[str, str]) -> StreamEndedError | None:
    """What a stream's trailers say of it."""
    code = headers.get("grpc-status")
    if code == "0":
        return None
    if code is None:
        http = headers.get(":status", "200")
        why = f"HTTP status {http}" if http != "200" else "no status"
        return StreamEndedError("UNAVAILABLE", f"the server ended the stream with {why}", headers)
    message = unquote(headers.get("grpc-message", "")) or "the server ended the stream"
    return StreamEndedError(_CODES.get(code, code), " ".join(message.split()), headers)


def reset_reason(payload: bytes) -> str:
    """What an RST_STREAM frame says."""
    code = int.from_bytes(payload)
    return _RESETS.get(code, f"error {code}")
