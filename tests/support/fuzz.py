"""Throws things at a server: calls of all its methods with made-up messages, damaged bytes, frames and plain noise.

`python -m tests.support.fuzz --minutes 60` starts a server of its own and prints what came back. A case has failed
where the server ended, did not answer in time, answered INTERNAL or UNKNOWN, or logged a trace. Frames and noise go to
a bare server of gRPC too: how its memory grows is gRPC's own part.
"""

import argparse
import random
import re
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import hyperframe.frame as h2
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from recurra.openinference import open_inference_pb2_grpc
from recurra.v1 import inference_pb2_grpc, models_pb2_grpc, sessions_pb2_grpc

from benchmarks.processes import free_port, resident_bytes, running
from tests.support import models
from tests.support.http2 import PREFACE, Rude
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stubs

_STUBS = (models_pb2_grpc, sessions_pb2_grpc, inference_pb2_grpc, open_inference_pb2_grpc)  # they register the protos
SERVICES = ("recurra.v1.ModelsService", "recurra.v1.SessionsService", "recurra.v1.InferenceService",
            "inference.GRPCInferenceService")  # fmt: skip
_SECONDS = 20.0
_WORDS = (
    "counter", "echo", "letters", "x", "y", "1", "", "session-0", "session-1", "session-2", "sequence_id",
    "sequence_start", "sequence_end", "timeout", "FP32", "INT64", "BYTES", "../..", "\0", "ü" * 40, "a" * 200,
)  # fmt: skip
# What gRPC 1.83 writes by itself where a call whose path is no text is reset before it is refused (SECURITY.md).
_GRPCS_OWN = re.compile(
    r'(?:\{"event": "Failed sending error status from server".*\n)?Traceback \(most recent call last\):\n'
    r'(?:  File "src/python/grpcio/.*\n)+grpc\._cython\.cygrpc\.ExecuteBatchError: .*\n'
)
_NUMBERS = (0, 1, 2, 3, 7, 64, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, -1, -(2**31), -(2**63))


class Fuzzer:
    """One of them, with a seed.

    Args:
        server: Is thrown at.
        seed: The same makes the same cases.
        beside: Addresses of servers that get the same frames and noise.

    Attributes:
        cases: How many there were, by kind.
        came_back: Statuses of calls.
        failures: What must not be.
        grpcs_own: Traces of gRPC's own, of calls that were reset.
        ids: Sessions that are open, to be hit too.
    """

    def __init__(self, server: ServerProcess, seed: int, *beside: str) -> None:
        self.cases: Counter[str] = Counter()
        self.came_back: Counter[str] = Counter()
        self.failures: list[str] = []
        self.grpcs_own = 0
        self._server = server
        self._targets = (server.target, *beside)
        self._rng = random.Random(seed)
        self._stubs = Stubs(server.target)
        self._methods = [
            (f"/{service}/{method.name}", method.input_type, method.client_streaming, method.server_streaming)
            for service in SERVICES
            for method in descriptor_pool.Default().FindServiceByName(service).methods
            # What it serves must stay, lest there is nothing left to try.
            if not any(word in method.name for word in ("Unload", "LoadModel", "ModelLoad", "Drain"))
        ]

    def run(self, seconds: float, report: Callable[[str], object] = print) -> None:
        """Go on for so many seconds, or until something must not be."""
        kinds = {"call": self._call, "damaged call": self._damaged, "frames": self._frames, "noise": self._noise}
        end, look_at, tell_at = time.monotonic() + seconds, 0.0, time.monotonic() + 60
        while time.monotonic() < end and not self.failures:
            kind = self._rng.choices(list(kinds), (60, 20, 15, 5))[0]
            kinds[kind]()
            self.cases[kind] += 1
            if time.monotonic() >= look_at:
                self._look()
                look_at = time.monotonic() + 1.0
            if time.monotonic() >= tell_at:
                report(f"{self.cases.total():,} cases, {_mebibytes(self._server.pid):.1f} MiB")
                tell_at += 60
        self._look()

    # --- kinds -----------------------------------------------------------------------------

    def _call(self) -> None:
        method, kind, client_streaming, server_streaming = self._rng.choice(self._methods)
        messages = [self.message(kind).SerializeToString() for _ in range(self._rng.choice((1, 1, 2, 5)))]
        self._send(method, messages, client_streaming=client_streaming, server_streaming=server_streaming)

    def _damaged(self) -> None:
        method, kind, client_streaming, server_streaming = self._rng.choice(self._methods)
        data = bytearray(self.message(kind).SerializeToString() or b"\0")
        for _ in range(self._rng.choice((1, 1, 3, 10))):
            position = self._rng.randrange(len(data))
            data[position : position + self._rng.choice((0, 1, 1, 4))] = self._rng.randbytes(
                self._rng.choice((0, 1, 4))
            )
            data = data or bytearray(1)
        self._send(method, [bytes(data)], client_streaming=client_streaming, server_streaming=server_streaming)

    def _frames(self) -> None:
        for rude in self._rudely():
            for _ in range(self._rng.randrange(1, 30)):
                if not rude.raw(self._frame(rude)):
                    break

    def _noise(self) -> None:
        rng = self._rng
        for rude in self._rudely(prefaced=rng.random() < 0.3):
            start = PREFACE[: rng.randrange(len(PREFACE) + 1)] if rng.random() < 0.5 else b""
            rude.raw(start + rng.randbytes(rng.choice((0, 1, 9, 100, 10_000))))

    # --- their parts -------------------------------------------------------------------------

    def _rudely(self, *, prefaced: bool = True) -> Iterator[Rude]:
        """A connection to each server, one after the other, for the same case."""
        state = self._rng.getstate()
        for target in self._targets:
            self._rng.setstate(state)
            with Rude(target, preface=prefaced) as rude:
                yield rude

    def _send(self, method: str, messages: list[bytes], *, client_streaming: bool, server_streaming: bool) -> None:
        channel: Any = self._stubs.channel
        try:
            if client_streaming:
                list(channel.stream_stream(method)(iter(messages), timeout=_SECONDS))
            elif server_streaming:
                list(channel.unary_stream(method)(messages[0], timeout=_SECONDS))
            else:
                channel.unary_unary(method)(messages[0], timeout=_SECONDS)
            status = "OK"
        except grpc.RpcError as error:
            status = error.code().name
            if status in ("UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL"):
                self.failures.append(f"{method}: {status} {error.details()!r} for {[data.hex() for data in messages]}")
        self.came_back[status] += 1

    def _frame(self, rude: Rude) -> bytes:
        rng = self._rng
        number = rng.choice((0, 1, 1, 3, 5, 2, 2**31 - 1))
        method = rng.choice(self._methods)[0]
        data = self.message(rng.choice(self._methods)[1]).SerializeToString()
        framed = bytes((rng.choice((0, 0, 0, 1, 255)),)) + struct.pack(
            ">I", rng.choice((len(data),) * 3 + (2**32 - 1,))
        )
        makers: tuple[Callable[[], bytes], ...] = (
            lambda: rude.call(number or 1, method).serialize(),
            lambda: rude.call(number or 1, method, note=rng.randbytes(12), authorization=rng.randbytes(4)).serialize(),
            lambda: h2.HeadersFrame(number or 1, rng.randbytes(20), flags=["END_HEADERS"]).serialize(),
            lambda: h2.DataFrame(number or 1, framed + data, flags=rng.choice(([], ["END_STREAM"]))).serialize(),
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
                        value[self._word()].CopyFrom(self.message(entry.message_type, depth + 1))
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

    def _word(self) -> str:
        return self._rng.choice(_WORDS)

    def _scalar(self, field: FieldDescriptor) -> Any:  # noqa: PLR0911 - a table
        rng = self._rng
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                good = struct.pack("<f", rng.choice((0.0, 1.0, float("nan"), float("inf"), 1e38)))
                return rng.choice((good, good, good * 2, b"", rng.randbytes(rng.randrange(64))))
            case FieldDescriptor.CPPTYPE_STRING:
                return self._word()
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

    # --- how it is ---------------------------------------------------------------------------

    def _look(self) -> None:
        """Whether the server is there, answers, and has nothing to complain of."""
        try:
            self._stubs.channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=_SECONDS)  # type: ignore[arg-type]
        except grpc.RpcError as error:
            self.failures.append(f"health: {error.code().name} {error.details()}")
        rest, self.grpcs_own = _GRPCS_OWN.subn("", self._server.output)
        if "Traceback" in rest:
            self.failures.append(rest[-3000:])


def main() -> int:
    """The command."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=1.0)
    arguments.add_argument("--seed", type=int, default=random.randrange(2**32))
    given = arguments.parse_args()
    print(f"seed {given.seed}")
    port = free_port()
    bare = [sys.executable, "-m", "benchmarks.servers.echo", "--port", str(port)]
    with (
        tempfile.TemporaryDirectory() as folder,
        running(bare, port) as beside,
        fuzzed_server(Path(folder)) as server,
    ):
        fuzzer = Fuzzer(server, given.seed, f"127.0.0.1:{port}")
        fuzzer.run(given.minutes * 6)  # warmed up
        before = _mebibytes(server.pid), _mebibytes(beside)
        fuzzer.run(given.minutes * 54)
        after = _mebibytes(server.pid), _mebibytes(beside)
    print(f"{fuzzer.cases.total():,} cases: {dict(fuzzer.cases)}")
    print(f"calls came back with: {dict(fuzzer.came_back.most_common())}")
    for whose, was, is_now in zip(("ours", "a bare gRPC server's"), before, after, strict=True):
        print(f"resident memory, {whose}: {was:.1f} MiB after a tenth of the time, {is_now:.1f} at the end")
    print(
        "\n".join(fuzzer.failures)
        or f"no crash, no hang, no trace but {fuzzer.grpcs_own} of gRPC's own for calls reset"
    )
    return 1 if fuzzer.failures else 0


def _mebibytes(pid: int) -> float:
    return resident_bytes([pid]) / 2**20


def fuzzed_server(folder: Path) -> Any:
    """A server to be thrown at."""
    models.publish(folder, "counter", models.counter())
    models.publish(folder, "echo", models.feed_forward(1, 1, feedback={"output": "y", "input": "x"}))
    models.publish(folder, "letters", models.letters(5))
    bounds = ("--max-message-mb", "1", "--max-chunk-steps", "64", "--max-sessions", "500", "--max-idle-timeout", "60")
    return running_server(folder, *bounds, "--default-idle-timeout", "5", "--no-metrics", ready="whoever can")


if __name__ == "__main__":
    sys.exit(main())
