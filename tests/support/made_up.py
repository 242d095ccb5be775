"""What anybody might send, made up at random: messages, damaged bytes, frames, tokens and requests over HTTP.

All is nearly right: what is only noise is refused before much has been tried.
"""

import json
import random
import struct
import time
from collections.abc import Callable
from typing import Any

import hyperframe.frame as h2
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tests.support.authority import AUDIENCE, ISSUER, TOKENS, Issuer
from tests.support.http2 import Rude

_WORDS = (
    "counter", "echo", "letters", "x", "y", "1", "", "session-0", "session-1", "session-2", "sequence_id",
    "sequence_start", "sequence_end", "timeout", "FP32", "INT64", "BYTES", "../..", "\0", "ü" * 40, "a" * 200,
    "counter/1", "recurra.v1.InferenceService", "recurra/v1/inference.proto", "google.protobuf.FieldOptions",
)  # fmt: skip
_NUMBERS = (0, 1, 2, 3, 7, 64, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, -1, -(2**31), -(2**63))
_CLAIMS: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, 1e308, float("inf"), float("nan"), "", "\0", "ü", "a" * 2000, [], [[]], {},
    ["predict", 7, None], "metrics", {"x5t#S256": 7}, {"x5t#S256": "!"}, {"x5t#S256": "aGFs"},
)  # fmt: skip
_PATHS = (
    b"/metrics", b"/metrics", b"/healthz", b"/readyz", b"/", b"/metrics?name[]=recurra_sessions", b"/metrics?\xff=%",
    b"//metrics//", b"/%ff%00", b"http://x/metrics", b"*", b"/" + b"x" * 70_000,
)  # fmt: skip


class MadeUp:
    """Makes it all up.

    Args:
        rng: Decides.
        issuer: Signs tokens.
    """

    def __init__(self, rng: random.Random, issuer: Issuer) -> None:
        self._rng = rng
        self._issuer = issuer

    def damaged(self, data: bytes) -> bytes:
        """The same with some of its bytes gone, changed, or others between them."""
        rng, changed = self._rng, bytearray(data or b"\0")
        for _ in range(rng.choice((1, 1, 3, 10))):
            position = rng.randrange(len(changed))
            changed[position : position + rng.choice((0, 1, 1, 4))] = rng.randbytes(rng.choice((0, 1, 4)))
            changed = changed or bytearray(1)
        return bytes(changed)

    def noise(self, start: bytes) -> bytes:
        """Bytes that mean nothing; some begin as something does."""
        rng = self._rng
        begun = start[: rng.randrange(len(start) + 1)] if rng.random() < 0.5 else b""
        return begun + rng.randbytes(rng.choice((0, 1, 9, 100, 10_000)))

    # --- messages ----------------------------------------------------------------------------

    def message(self, kind: Descriptor, depth: int = 0) -> Message:
        """A message whose fields hold what could be right, and what could not."""
        message: Message = message_factory.GetMessageClass(kind)()
        for field in kind.fields:
            if depth > 4 or self._rng.random() < 0.45:
                continue
            value = getattr(message, field.name)
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                entry = field.message_type.fields_by_name["value"]
                for _ in range(self._rng.choice((0, 1, 2))):
                    if entry.message_type is not None:
                        value[self._rng.choice(_WORDS)].CopyFrom(self.message(entry.message_type, depth + 1))
            elif field.is_repeated:
                for _ in range(self._rng.choice((0, 1, 1, 2, 5))):
                    if field.message_type is not None:
                        value.add().CopyFrom(self.message(field.message_type, depth + 1))
                    else:
                        value.append(self._scalar(field))
            elif field.message_type is not None:
                value.CopyFrom(self.message(field.message_type, depth + 1))
            else:
                setattr(message, field.name, self._scalar(field))
        return message

    def _scalar(self, field: FieldDescriptor) -> Any:  # noqa: PLR0911 - a table
        rng = self._rng
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                good = struct.pack("<f", rng.choice((0.0, 1.0, float("nan"), float("inf"), 1e38)))
                return rng.choice((good, good, good * 2, b"", rng.randbytes(rng.randrange(64))))
            case FieldDescriptor.CPPTYPE_STRING:
                return rng.choice(_WORDS)
            case FieldDescriptor.CPPTYPE_BOOL:
                return rng.random() < 0.5
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return rng.choice((0.0, 1.0, -1.0, float("nan"), float("inf"), 1e38))
            case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_ENUM:
                return rng.choice([number for number in _NUMBERS if -(2**31) <= number < 2**31])
            case FieldDescriptor.CPPTYPE_UINT32:
                return rng.choice([number for number in _NUMBERS if 0 <= number < 2**32])
            case FieldDescriptor.CPPTYPE_UINT64:
                return rng.choice([number for number in _NUMBERS if number >= 0])
            case _:
                return rng.choice(_NUMBERS)

    # --- frames ------------------------------------------------------------------------------

    def frame(self, rude: Rude, method: str, data: bytes) -> bytes:
        """A frame for a connection: often of a call of this method, with this as its message."""
        rng = self._rng
        number = rng.choice((0, 1, 1, 3, 5, 2, 2**31 - 1))
        length = struct.pack(">I", rng.choice((len(data),) * 3 + (2**32 - 1,)))
        framed = bytes((rng.choice((0, 0, 0, 1, 255)),)) + length + data
        makers: tuple[Callable[[], bytes], ...] = (
            lambda: rude.call(number or 1, method).serialize(),
            lambda: rude.call(number or 1, method, note=rng.randbytes(12), authorization=rng.randbytes(4)).serialize(),
            lambda: h2.HeadersFrame(number or 1, rng.randbytes(20), flags=["END_HEADERS"]).serialize(),
            lambda: h2.DataFrame(number or 1, framed, flags=rng.choice(([], ["END_STREAM"]))).serialize(),
            lambda: h2.RstStreamFrame(number or 1, error_code=rng.randrange(16)).serialize(),
            lambda: h2.SettingsFrame(0, settings={rng.randrange(10): rng.randrange(2**31)}).serialize(),
            lambda: h2.PingFrame(0, opaque_data=rng.randbytes(8)).serialize(),
            lambda: h2.WindowUpdateFrame(number, window_increment=rng.randrange(1, 2**31)).serialize(),
            lambda: h2.GoAwayFrame(0, error_code=rng.randrange(16)).serialize(),
            lambda: h2.PriorityFrame(number or 1, depends_on=rng.randrange(9), stream_weight=1).serialize(),
            lambda: h2.ContinuationFrame(number or 1, rng.randbytes(10), flags=["END_HEADERS"]).serialize(),
            lambda: rng.randrange(40).to_bytes(3, "big") + rng.randbytes(6 + rng.randrange(40)),
        )
        return rng.choice(makers)()

    # --- tokens ------------------------------------------------------------------------------

    def authorization(self) -> list[str]:
        """What is shown to say who calls: as it should be, or none, several, or of another kind."""
        rng = self._rng
        return [
            rng.choice(("Bearer ", "Bearer ", "Bearer ", "bearer  ", "Basic ", "")) + self.token()
            for _ in range(rng.choice((1, 1, 1, 1, 1, 0, 2)))
        ]

    def token(self) -> str:
        """A token, in ASCII: of somebody who may predict or read metrics, signed but odd, damaged, or none at all.

        None is of somebody who may operate.
        """
        rng = self._rng
        makers: tuple[Callable[[], str], ...] = (
            lambda: TOKENS[rng.choice(("alice", "bob", "max"))],
            lambda: self._jwt({}, {}),
            lambda: self._jwt({}, self._odd("exp", "nbf", "iat", "iss", "aud", "sub", "roles", "cnf", "jti")),
            lambda: self._jwt(self._odd("kid", "alg", "typ", "crit", "b64", "jku"), {}),
            lambda: self._issuer.signed(self.damaged(b'{"alg":"ES256"}'), b"[" * rng.choice((1, 5000))),
            lambda: self._issuer.signed(b"[" * rng.choice((1, 4000)), b"{}"),
            lambda: "".join(rng.choices("abcXYZ019-_.=/ ~", k=rng.choice((0, 1, 30, 8192, 9000)))),
        )
        token = rng.choice(makers)()
        if rng.random() < 0.2:
            token = self.damaged(token.encode()).decode(errors="ignore")
        return "".join(letter for letter in token if " " <= letter <= "~")

    def _jwt(self, header: dict[str, Any], claims: dict[str, Any]) -> str:
        good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": int(time.time()) + 300, "roles": ["predict"]}
        head = {"alg": "ES256", "kid": self._issuer.key_id} | header
        return self._issuer.signed(json.dumps(head).encode(), json.dumps(good | claims).encode())

    def _odd(self, *names: str) -> dict[str, Any]:
        rng = self._rng
        return {rng.choice(names): rng.choice(_CLAIMS) for _ in range(rng.choice((1, 1, 2, 5)))}

    # --- HTTP --------------------------------------------------------------------------------

    def request(self) -> bytes:
        """A request over HTTP/1."""
        rng = self._rng
        methods = (*(b"GET",) * 12, b"HEAD", b"POST", b"OPTIONS", b"get", b"X" * 300, b"", b"\xff")
        versions = (*(b"HTTP/1.1",) * 8, b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.x", b"HTTP/1", b"")
        line = b" ".join((rng.choice(methods), rng.choice(_PATHS), rng.choice(versions)))
        fields = [self._field() for _ in range(rng.choice((0, 1, 1, 2, 5, 150)))]
        body = rng.randbytes(rng.choice((0, 0, 1, 1000)))
        return rng.choice((b"\r\n",) * 4 + (b"\n", b"\r")).join((line, *fields, b"", body))

    def _field(self) -> bytes:
        rng = self._rng
        makers: tuple[Callable[[], bytes], ...] = (
            lambda: b"Accept: " + b",".join(self._format() for _ in range(rng.choice((1, 1, 3)))),
            lambda: b"Authorization: " + ", ".join(self.authorization()).encode(),
            lambda: b"Accept-Encoding: " + rng.choice((b"gzip", b"gzip;q=x", b"snappy", b"\xff", b"")),
            lambda: b"Content-Length: %d" % rng.choice(_NUMBERS),
            lambda: b"Transfer-Encoding: chunked",
            lambda: b"Expect: 100-continue",
            lambda: rng.choice(_WORDS).encode() + b":" * rng.choice((0, 1, 1)) + rng.choice(_WORDS).encode(),
            lambda: b" folded" + rng.randbytes(9),
        )
        return rng.choice(makers)()

    def _format(self) -> bytes:
        rng = self._rng
        versions = (b"0.0.4", b"1.0.0", b"1.0.0", b"2.0.0", b"1", b"x", b"2.x", b"", b"9" * 5000, b"\xff", b"1.0.0\0")
        return b"%b;%b=%b;escaping=%b;q=%b" % (
            rng.choice((b"application/openmetrics-text", b"text/plain", b"*/*", b"")),
            rng.choice((b"version", b" version", b"version ", b"VERSION")),
            rng.choice(versions),
            rng.choice((b"allow-utf-8", b"dots", b"values", b"x")),
            rng.choice((b"0.5", b"x")),
        )
