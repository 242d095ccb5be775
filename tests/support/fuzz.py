"""Throws things at servers: calls of all their methods with made-up messages, damaged bytes, frames and plain noise.

`python -m tests.support.fuzz --minutes 60` starts servers of its own and prints what came back: one that anybody may
call, and one with an access file, which is shown made-up tokens; HTTP goes to the metrics of both. A case has failed
where a server ended, did not answer in time, answered INTERNAL or UNKNOWN, or logged a trace. Frames and noise go to a
bare server of gRPC too: how its memory grows is gRPC's own part.
"""

import argparse
import random
import re
import socket
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from recurra.openinference import open_inference_pb2
from recurra.v1 import inference_pb2, models_pb2, sessions_pb2

from benchmarks.processes import free_port, resident_bytes, running
from tests.support import models
from tests.support.authority import Issuer, write_access_file
from tests.support.http2 import PREFACE, Rude
from tests.support.made_up import MadeUp
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stubs

METHODS: tuple[MethodDescriptor, ...] = tuple(
    method
    for protos in (
        models_pb2,
        sessions_pb2,
        inference_pb2,
        open_inference_pb2,
        health_pb2,
        reflection_pb2,
        channelz_pb2,
    )
    for service in protos.DESCRIPTOR.services_by_name.values()
    for method in descriptor_pool.Default().FindServiceByName(service.full_name).methods
)
"""Of all services that a server has."""
_MODELS = ("counter", "echo", "letters")
_SECONDS = 20.0
# What gRPC 1.83 writes by itself where a call whose path is no text is reset before it is refused (SECURITY.md); the
# rest of the last one may be yet to come.
_GRPCS_OWN = re.compile(
    r'(?:\{"event": "Failed sending error status from server".*\n)?Traceback \(most recent call last\):\n'
    r'(?:  File "src/python/grpcio/.*\n)*(?:grpc\._cython\.cygrpc\.ExecuteBatchError: .*\n|\Z)'
)


class Fuzzed(NamedTuple):
    """Servers to be thrown at.

    Attributes:
        free: Anybody may call it.
        guarded: Has an access file.
        issuer: Whose tokens that one takes.
    """

    free: ServerProcess
    guarded: ServerProcess
    issuer: Issuer


class Fuzzer:
    """One of them, with a seed.

    Args:
        servers: Are thrown at.
        seed: The same makes the same cases.
        beside: Addresses of servers that get the same frames and noise.

    Attributes:
        cases: How many there were, by kind.
        came_back: Statuses of calls and of requests over HTTP.
        failures: What must not be.
        grpcs_own: Traces of gRPC's own, of calls that were reset.
    """

    def __init__(self, servers: Fuzzed, seed: int, *beside: str) -> None:
        self.cases: Counter[str] = Counter()
        self.came_back: Counter[str] = Counter()
        self.failures: list[str] = []
        self.grpcs_own = 0
        self._servers = (servers.free, servers.guarded)
        self._targets = (*(server.target for server in self._servers), *beside)
        self._rng = random.Random(seed)
        self._made_up = MadeUp(self._rng, servers.issuer)
        self._free, self._guarded = (Stubs(server.target) for server in self._servers)

    def run(self, seconds: float, report: Callable[[str], object] = print) -> None:
        """Go on for so many seconds, or until something must not be."""
        kinds = {
            "call": (45, self._call),
            "damaged call": (15, self._damaged),
            "call with a token": (15, self._with_token),
            "frames": (12, self._frames),
            "noise": (4, self._noise),
            "HTTP": (6, lambda: self._http(self._made_up.request())),
            "damaged HTTP": (2, lambda: self._http(self._made_up.damaged(self._made_up.request()))),
            "noise for HTTP": (1, lambda: self._http(self._made_up.noise(b"GET /metrics HTTP/1.0\r\n\r\n"))),
        }
        end, look_at, tell_at = time.monotonic() + seconds, 0.0, time.monotonic() + 60
        while time.monotonic() < end and not self.failures:
            (kind,) = self._rng.choices(list(kinds), [share for share, _ in kinds.values()])
            kinds[kind][1]()
            self.cases[kind] += 1
            if time.monotonic() >= look_at:
                self._look()
                look_at = time.monotonic() + 1.0
            if time.monotonic() >= tell_at:
                report(
                    f"{self.cases.total():,} cases, {', '.join(f'{_mebibytes(s.pid):.1f} MiB' for s in self._servers)}"
                )
                tell_at += 60
        self._look()

    # --- kinds -----------------------------------------------------------------------------

    def _call(self) -> None:
        method = self._method()
        self._send(self._free, method, self._messages(method))

    def _damaged(self) -> None:
        method = self._method(but="DrainSessions")
        message = self._made_up.message(method.input_type).SerializeToString()
        self._send(self._free, method, [self._made_up.damaged(message)])

    def _with_token(self) -> None:
        method = self._method()
        shown = [("authorization", value) for value in self._made_up.authorization()]
        self._send(self._guarded, method, self._messages(method), shown)

    def _frames(self) -> None:
        for rude in self._rudely():
            for _ in range(self._rng.randrange(1, 30)):
                message = self._made_up.message(self._method().input_type).SerializeToString()
                if not rude.raw(self._made_up.frame(rude, _path(self._method(but="DrainSessions")), message)):
                    break

    def _noise(self) -> None:
        for rude in self._rudely(prefaced=self._rng.random() < 0.3):
            rude.raw(self._made_up.noise(PREFACE))

    def _http(self, request: bytes) -> None:
        for server in self._servers:
            host, _, port = server.metrics_url.removeprefix("http://").removesuffix("/metrics").rpartition(":")
            try:
                with socket.create_connection((host, int(port)), _SECONDS) as connection:
                    connection.sendall(request)
                    connection.shutdown(socket.SHUT_WR)
                    answer = connection.makefile("rb").read()
            except TimeoutError:
                self.failures.append(f"no answer to {request!r}")
                return
            except OSError:  # it has not read all, and hung up
                answer = b""
            status = re.match(rb"HTTP/1\.\d (\d{3})", answer)
            said = f"HTTP {status[1].decode()}" if status else "HTTP, no status"
            self.came_back[said] += 1
            if said in ("HTTP 500", "HTTP 503"):
                self.failures.append(f"{answer!r} to {request!r}")

    # --- their parts -------------------------------------------------------------------------

    def _method(self, but: str = "") -> MethodDescriptor:
        """Any method; those that change what is served come seldom, as that takes long."""
        rare = re.compile(r"Load|Unload")
        methods = [method for method in METHODS if method.name != but]
        return self._rng.choices(methods, [0.1 if rare.search(method.name) else 1.0 for method in methods])[0]

    def _messages(self, method: MethodDescriptor) -> list[bytes]:
        made = [self._made_up.message(method.input_type) for _ in range(self._rng.choice((1, 1, 2, 5)))]
        for message in made:
            if isinstance(message, sessions_pb2.DrainSessionsRequest):  # one that is obeyed leaves nothing to try
                message.grace.seconds = self._rng.choice((-9, 86_409, -(2**62), 2**62))  # whatever its nanoseconds are
        return [message.SerializeToString() for message in made]

    def _rudely(self, *, prefaced: bool = True) -> Iterator[Rude]:
        """A connection to each server, one after the other, for the same case."""
        state = self._rng.getstate()
        for target in self._targets:
            self._rng.setstate(state)
            with Rude(target, preface=prefaced) as rude:
                yield rude

    def _send(
        self, stubs: Stubs, method: MethodDescriptor, messages: list[bytes], metadata: Sequence[tuple[str, str]] = ()
    ) -> None:
        channel: Any = stubs.channel
        path, options = _path(method), {"timeout": _SECONDS, "metadata": metadata}
        try:
            if method.client_streaming:
                list(channel.stream_stream(path)(iter(messages), **options))
            elif method.server_streaming:
                answers = channel.unary_stream(path)(messages[0], **options)
                list(islice(answers, 1 if method.name == "Watch" else None))  # which ends only with its caller
                answers.cancel()
            else:
                channel.unary_unary(path)(messages[0], **options)
            status = "OK"
        except grpc.RpcError as error:
            status = error.code().name
            if status in ("UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL"):
                sent = [data.hex() for data in messages]
                self.failures.append(f"{path}: {status} {error.details()!r} for {sent} {list(metadata)}")
        self.came_back[status] += 1

    # --- how it is ---------------------------------------------------------------------------

    def _look(self) -> None:
        """Whether the servers are there, answer, and have nothing to complain of; what was unloaded is loaded again."""
        try:
            for stubs in (self._free, self._guarded):
                stubs.health.Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
            served = self._free.models.ListModels(models_pb2.ListModelsRequest(), timeout=_SECONDS).models
            for name in set(_MODELS) - {model.name for model in served}:
                self._free.models.LoadModel(models_pb2.LoadModelRequest(name=name), timeout=_SECONDS)
            for server in self._servers:
                healthz = server.metrics_url.replace("/metrics", "/healthz")
                urllib.request.urlopen(healthz, timeout=_SECONDS).close()  # noqa: S310 - http
        except (grpc.RpcError, OSError) as error:
            self.failures.append(f"it serves no more: {error}")
        found = [_GRPCS_OWN.subn("", server.output) for server in self._servers]
        self.grpcs_own = sum(count for _, count in found)
        self.failures += [rest[-3000:] for rest, _ in found if "Traceback" in rest]


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
        fuzzed_servers(Path(folder)) as servers,
    ):
        fuzzer = Fuzzer(servers, given.seed, f"127.0.0.1:{port}")
        whose = {"ours": servers.free.pid, "ours with --access": servers.guarded.pid, "a bare gRPC server's": beside}
        fuzzer.run(given.minutes * 6)  # warmed up
        before = [_mebibytes(pid) for pid in whose.values()]
        fuzzer.run(given.minutes * 54)
        after = [_mebibytes(pid) for pid in whose.values()]
    print(f"{fuzzer.cases.total():,} cases: {dict(fuzzer.cases)}")
    print(f"what came back: {dict(fuzzer.came_back.most_common())}")
    for name, was, is_now in zip(whose, before, after, strict=True):
        print(f"resident memory, {name}: {was:.1f} MiB after a tenth of the time, {is_now:.1f} at the end")
    print(
        "\n".join(fuzzer.failures)
        or f"no crash, no hang, no trace but {fuzzer.grpcs_own} that gRPC itself wrote of calls that were reset"
    )
    return 1 if fuzzer.failures else 0


def _path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def _mebibytes(pid: int) -> float:
    return resident_bytes([pid]) / 2**20


@contextmanager
def fuzzed_servers(folder: Path) -> Iterator[Fuzzed]:
    """Servers to be thrown at."""
    repository, issuer, access_file = folder / "models", Issuer(folder), folder / "access.yaml"
    models.publish(repository, "counter", models.counter())
    models.publish(repository, "echo", models.feed_forward(1, 1, feedback={"output": "y", "input": "x"}))
    models.publish(repository, "letters", models.letters(5))
    write_access_file(access_file, issuer)
    flags = ("--max-message-mb", "1", "--max-chunk-steps", "64", "--max-sessions", "500", "--max-idle-timeout", "60",
             "--default-idle-timeout", "5", "--channelz")  # fmt: skip
    with (
        running_server(repository, *flags) as free,
        running_server(repository, *flags, "--access", str(access_file)) as guarded,
    ):
        yield Fuzzed(free, guarded, issuer)


if __name__ == "__main__":
    sys.exit(main())
