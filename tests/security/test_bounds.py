"""What somebody can make the server spend: each bound, and what comes back beyond it."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from recurra.v1.inference_pb2 import GenerateRequest, ModelVersion, StepRequest, StreamStepsRequest
from recurra.v1.sessions_pb2 import OpenSessionRequest
from recurra.v1.tensor_pb2 import DATA_TYPE_FLOAT32, Tensor

from benchmarks.processes import resident_bytes
from tests.security.conftest import Attack, failure, reason_of, refused
from tests.support import models
from tests.support.authority import Authority
from tests.support.http2 import PREFACE, Rude
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stream, Stubs, error_info, tensor

MIB = 1 << 20
STREAM = "/recurra.v1.InferenceService/StreamSteps"
STEP = "/recurra.v1.InferenceService/Step"
BOUNDS = (
    "--max-message-mb", "1", "--max-chunk-steps", "64", "--max-header-kb", "16", "--max-streams-per-connection", "20",
    "--max-sessions-per-stream", "3", "--handshake-timeout", "1", "--keepalive", "1", "--slow-reader-timeout", "1",
    "--max-connections", "60", "--max-tombstones", "1000", "--max-batch-rows", "8",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with small bounds, and a model with large answers."""
    root = tmp_path_factory.mktemp("models")
    models.publish(root, "counter", models.counter())
    models.publish(root, "echo", models.feed_forward(1, 1, feedback={"output": "y", "input": "x"}))
    models.publish(root, "wide", models.feed_forward(1, 20_000))
    with running_server(root, *BOUNDS) as process:
        yield process


@pytest.fixture
def stubs(server: ServerProcess) -> Iterator[Stubs]:
    stubs = Stubs(server.target)
    yield stubs
    stubs.channel.close()


def memory(server: ServerProcess) -> int:
    return resident_bytes([server.pid])


@pytest.fixture(autouse=True)
def _serves_on(server: ServerProcess) -> Iterator[None]:
    """After each attack the server still serves others."""
    yield
    stubs = Stubs(server.target)
    with stubs.channel:
        assert stubs.health.Check(health_pb2.HealthCheckRequest(), timeout=30).status == 1


# --- messages ---------------------------------------------------------------------------------


def test_a_message_over_the_bound_is_refused(stubs: Stubs, attack: Attack) -> None:
    request = StepRequest(session_id="a", inputs=[Tensor(data=bytes(MIB + 1))])
    assert refused(lambda: stubs.inference.Step(request)) == "RESOURCE_EXHAUSTED"
    attack("gRPC", "a message over --max-message-mb", "RESOURCE_EXHAUSTED")


def test_a_message_that_only_claims_to_be_large_costs_nothing(server: ServerProcess, attack: Attack) -> None:
    before = memory(server)
    with Rude(server.target) as rude:
        claim = b"\0" + struct.pack(">I", 0xFFFF_FFFF)
        for number in range(1, 21, 2):
            rude.send(rude.call(number, STEP), DataFrame(number, claim))
        assert ended(until(rude, lambda seen: ended(seen) >= 10)) >= 10
    assert memory(server) - before < 16 * MIB
    attack("HTTP/2", "a message that says it has 4 GiB", "refused when its first five bytes are there")


LYING: dict[str, Tensor] = {
    "a shape of 2^62 elements": Tensor(dtype=DATA_TYPE_FLOAT32, shape=[1 << 62], data=bytes(4)),
    "a shape whose product overflows": Tensor(dtype=DATA_TYPE_FLOAT32, shape=[1 << 32, 1 << 32], data=bytes(4)),
    "a negative shape": Tensor(dtype=DATA_TYPE_FLOAT32, shape=[-1, 1], data=bytes(4)),
    "more bytes than the shape says": Tensor(dtype=DATA_TYPE_FLOAT32, shape=[1], data=bytes(4096)),
    "fewer bytes than the shape says": Tensor(dtype=DATA_TYPE_FLOAT32, shape=[64, 1], data=bytes(8)),
    "a hundred axes": Tensor(dtype=DATA_TYPE_FLOAT32, shape=[1] * 100, data=bytes(4)),
    "a chunk over the bound": Tensor(dtype=DATA_TYPE_FLOAT32, shape=[65, 1], data=bytes(260)),
    "a dtype that does not exist": Tensor(dtype=99, shape=[1], data=bytes(4)),  # type: ignore[arg-type]
    "a name of 100,000 characters": Tensor(name="x" * 100_000, shape=[1], data=bytes(4)),
}


@pytest.mark.parametrize("tried", LYING)
def test_a_tensor_that_lies_is_refused_before_memory_is_spent(
    server: ServerProcess, stubs: Stubs, tried: str, attack: Attack
) -> None:
    session_id = stubs.sessions.OpenSession(OpenSessionRequest(model="counter")).session.session_id
    before = memory(server)
    error = failure(lambda: stubs.inference.Step(StepRequest(session_id=session_id, inputs=[LYING[tried]])))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(error.details()) < 1000
    assert memory(server) - before < 16 * MIB
    attack("gRPC", f"a tensor with {tried}", "INVALID_ARGUMENT")


def test_a_stream_opens_no_more_sessions_than_it_may(stubs: Stubs, attack: Attack) -> None:
    stream = Stream(stubs)
    opened = [stream.ask(open=OpenSessionRequest(model="counter")).opened.session_id for _ in range(3)]
    refusal = stream.ask(open=OpenSessionRequest(model="counter")).error
    assert (refusal.reason, refusal.metadata["bound"]) == ("CAPACITY", "max_sessions_per_stream")
    stream.ask(session_id=opened[0], close=True)
    assert stream.ask(open=OpenSessionRequest(model="counter")).opened.session_id
    stream.end()
    attack("gRPC", "more sessions on a stream than --max-sessions-per-stream", "RESOURCE_EXHAUSTED CAPACITY")


# --- HTTP/2 -----------------------------------------------------------------------------------


def until(rude: Rude, enough: Callable[[list[Any]], bool]) -> list[Any]:
    """The frames that come until there are enough, or the connection is closed."""
    seen: list[Any] = []
    for frame in rude.frames():
        seen.append(frame)
        if enough(seen):
            break
    return seen


def ended(frames: list[Any]) -> int:
    """Streams that the server has ended."""
    return len({
        frame.stream_id
        for frame in frames
        if isinstance(frame, RstStreamFrame) or (isinstance(frame, HeadersFrame) and "END_STREAM" in frame.flags)
    })  # fmt: skip


def is_closed(rude: Rude) -> bool:
    """Wait until the server closes the connection."""
    for _ in rude.frames():
        pass
    return rude.closed


def test_headers_over_the_bound_are_refused(stubs: Stubs, attack: Attack) -> None:
    metadata = (("x", "y" * 20_000),)
    call = StepRequest(session_id="a")
    assert refused(lambda: stubs.inference.Step(call, metadata=metadata)) == "RESOURCE_EXHAUSTED"
    attack("HTTP/2", "headers over --max-header-kb", "RESOURCE_EXHAUSTED")


def test_more_streams_than_a_connection_may_have_are_refused(server: ServerProcess, attack: Attack) -> None:
    with Rude(server.target) as rude:
        for frame in rude.frames():
            if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
                assert frame.settings[SettingsFrame.MAX_CONCURRENT_STREAMS] == 20
                break
        rude.send(*(rude.call(number, STREAM) for number in range(1, 200, 2)))
        frames = until(rude, lambda seen: ended(seen) >= 80)
        assert rude.closed or ended(frames) >= 80
    attack("HTTP/2", "more streams than --max-streams-per-connection", "refused, or the connection is closed")


def test_a_connection_on_which_nothing_is_said_is_closed(server: ServerProcess, attack: Attack) -> None:
    for tried, first in {
        "a connection that says nothing": b"",
        "a connection that sends a part of the preface, and waits": PREFACE[:10],
        "a connection that sends the preface, and waits": PREFACE,
    }.items():
        with Rude(server.target, preface=False) as rude:
            rude.raw(first)
            assert is_closed(rude)
        attack("HTTP/2", tried, "closed after --handshake-timeout")


def test_a_handshake_that_is_not_gone_on_with_is_cut_off(
    server: ServerProcess, repository: Path, tmp_path: Path, attack: Attack
) -> None:
    authority = Authority(tmp_path)
    flags = (*authority.flags(), "--handshake-timeout", "1", "--no-metrics")
    with running_server(repository, *flags, ready="whoever can") as encrypted:
        for first in (b"", b"\x16\x03\x01\x02\x00\x01"):
            with Rude(encrypted.target, preface=False) as rude:
                rude.raw(first)
                assert is_closed(rude)
        assert Stubs(encrypted.target, authority.credentials()).health.Check(health_pb2.HealthCheckRequest()).status
    attack("TLS", "a handshake that is begun, and not gone on with (slow loris)", "closed after --handshake-timeout")


def test_who_does_not_answer_pings_is_taken_for_gone(server: ServerProcess, attack: Attack) -> None:
    with Rude(server.target) as rude:
        rude.send(rude.call(1, STREAM))  # headers, and then nothing more
        assert is_closed(rude)
    attack("HTTP/2", "a call that is begun, and then silence (slow loris)", "closed when two pings are not answered")


def test_slow_headers_are_held_by_one_connection_only(server: ServerProcess, stubs: Stubs, attack: Attack) -> None:
    """Headers that come byte by byte: nothing else is served on that connection, and everything on others."""
    with Rude(server.target) as rude:
        block = rude.headers("/grpc.health.v1.Health/Check")
        rude.send(HeadersFrame(1, block[:1]))
        for position in range(1, len(block)):
            if not rude.send(ContinuationFrame(1, block[position : position + 1])):
                break
            if position % 50 == 0:
                assert stubs.health.Check(health_pb2.HealthCheckRequest(), timeout=30).status == 1
        assert is_closed(rude)
    attack("HTTP/2", "headers byte by byte (slow loris)", "others are served; closed when pings are not answered")


def test_a_ping_flood_ends_the_connection(server: ServerProcess, attack: Attack) -> None:
    with Rude(server.target) as rude:
        for number in range(10_000):
            if not rude.send(PingFrame(0, opaque_data=number.to_bytes(8, "big"))):
                break
        frames = list(rude.frames())
    assert any(isinstance(frame, GoAwayFrame) and frame.error_code == 11 for frame in frames)
    attack("HTTP/2", "a flood of pings", "GOAWAY ENHANCE_YOUR_CALM")


def flood(server: ServerProcess, frames: Callable[[Rude, int], Any], count: int) -> int:
    """Send many frames, while somebody else works; return how often that one was served meanwhile."""
    stubs, done, served = Stubs(server.target), threading.Event(), 0

    def attacker() -> None:
        with contextlib.suppress(OSError), Rude(server.target) as rude:
            rude.socket.settimeout(20)
            drain = threading.Thread(target=lambda: [None for _ in drained(rude)], daemon=True)
            drain.start()
            for number in range(count):
                if not rude.send(*frames(rude, 2 * number + 1)):
                    break
        done.set()

    thread = threading.Thread(target=attacker)
    thread.start()
    with stubs.channel:
        while not done.is_set() or not served:
            assert stubs.health.Check(health_pb2.HealthCheckRequest(), timeout=30).status == 1
            served += 1
    thread.join()
    return served


def drained(rude: Rude) -> Iterator[Any]:
    with contextlib.suppress(OSError, ValueError):
        yield from rude.frames()


FLOODS: dict[str, tuple[int, Callable[[Rude, int], Any]]] = {
    "calls that are reset at once (rapid reset, CVE-2023-44487)": (
        5000, lambda rude, number: (rude.call(number), RstStreamFrame(number, error_code=8)),
    ),
    "streams that are reset at once": (
        5000, lambda rude, number: (rude.call(number, STREAM), RstStreamFrame(number, error_code=8)),
    ),
    "settings": (5000, lambda _, number: (SettingsFrame(0, settings={4: 65535 + number % 2}),)),
    "window updates of zero": (5000, lambda _, number: (WindowUpdateFrame(1, window_increment=1),)),
    "empty frames of data": (
        5000, lambda rude, number: (rude.call(1, STREAM),) if number == 1 else (DataFrame(1, b""),),
    ),
    "headers without an end (CONTINUATION flood)": (
        5000,
        lambda rude, number: (HeadersFrame(1, rude.headers()),)
        if number == 1
        else (ContinuationFrame(1, b"\x40\x01a\x7f\x81\x01" + b"b" * 256),),
    ),
    "frames of a kind that does not exist": (
        5000, lambda rude, number: (rude.call(1, STREAM),) if number == 1 else (_Unknown(number),),
    ),
}  # fmt: skip


class _Unknown:
    """A frame that RFC 9113 does not know, which is to be passed over."""

    def __init__(self, number: int) -> None:
        self._payload = number.to_bytes(8, "big")

    def serialize(self) -> bytes:
        return len(self._payload).to_bytes(3, "big") + b"\xee\x00" + bytes(4) + self._payload


@pytest.mark.parametrize("tried", FLOODS)
def test_a_flood_does_not_keep_others_out(server: ServerProcess, tried: str, attack: Attack) -> None:
    count, frames = FLOODS[tried]
    before = memory(server)
    assert flood(server, frames, count) > 0
    assert memory(server) - before < 64 * MIB
    attack("HTTP/2", f"a flood of {tried}", "others are served meanwhile; memory stays")


def test_more_connections_than_there_may_be_are_closed(server: ServerProcess, stubs: Stubs, attack: Attack) -> None:
    stubs.health.Check(health_pb2.HealthCheckRequest())
    host, _, port = server.target.rpartition(":")
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection((host, int(port)), 30))
        assert stubs.health.Check(health_pb2.HealthCheckRequest(), timeout=30).status == 1
    attack("TCP", "more connections than --max-connections", "closed; those that are open are served")


# --- readers ----------------------------------------------------------------------------------


def test_who_reads_nothing_is_cut_off(server: ServerProcess, attack: Attack) -> None:
    """A stream whose caller has left no room for answers."""
    before = memory(server)
    opening = StreamStepsRequest(open=OpenSessionRequest(model="wide"), inputs=[tensor([1.0])])
    step = StreamStepsRequest(inputs=[tensor([1.0])])

    def framed(message: Message) -> bytes:
        data = message.SerializeToString()
        return b"\0" + struct.pack(">I", len(data)) + data

    def counted(name: str, **labels: str) -> float:
        return server.metrics().get(name, **labels) or 0.0

    cut_before = counted("recurra_errors_total", reason="slow_reader")
    generate = GenerateRequest(model=ModelVersion(name="echo"), inputs=[tensor([1.0])], max_steps=64)
    with Rude(server.target, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as rude:
        threading.Thread(target=keep_alive, args=(rude,), daemon=True).start()
        rude.send(
            rude.call(1, STREAM), DataFrame(1, framed(opening)), *(DataFrame(1, framed(step)) for _ in range(500))
        )
        rude.send(rude.call(3, "/recurra.v1.InferenceService/Generate"))
        rude.send(DataFrame(3, framed(generate), flags=["END_STREAM"]))
        assert wait_until(lambda: counted("recurra_errors_total", reason="slow_reader") == cut_before + 2)
        assert wait_until(lambda: counted("recurra_streams") == 0)
        assert not rude.closed
        assert memory(server) - before < 64 * MIB
    attack("gRPC", "a stream or an answer that is not read", "served no more; what it holds is bounded")


def keep_alive(rude: Rude) -> None:
    """Answer pings, and take in nothing else."""
    for frame in drained(rude):
        if isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            rude.send(PingFrame(0, opaque_data=frame.opaque_data, flags=["ACK"]))


def test_a_connection_that_is_too_old_is_ended(repository: Path, attack: Attack) -> None:
    with running_server(repository, "--max-connection-age", "1", "--no-metrics", ready="whoever can") as server:
        stubs = Stubs(server.target)
        stream = Stream(stubs)
        assert stream.ask(open=OpenSessionRequest(model="counter")).opened.session_id
        error = failure(stream.read)  # nothing more is sent: the server ends it by itself
        assert reason_of(error) in ("UNAVAILABLE", "CANCELLED")
        assert stubs.health.Check(health_pb2.HealthCheckRequest()).status == 1  # over a new connection
        stubs.channel.close()
    attack("HTTP/2", "a connection held open for ever", "ended after --max-connection-age")


# --- what is left over ------------------------------------------------------------------------


def test_ten_thousand_abandoned_sessions_leave_nothing_behind(server: ServerProcess, attack: Attack) -> None:
    def abandon() -> None:
        opening = OpenSessionRequest(model="counter")
        opening.idle_timeout.FromMilliseconds(200)
        for _ in range(10):
            stubs = Stubs(server.target)
            stream = stubs.inference.StreamSteps(iter([StreamStepsRequest(open=opening)] * 3))
            assert [answer.opened.model for answer in stream] == ["counter"] * 3
            for _ in range(997):
                assert stubs.sessions.OpenSession(opening).session.session_id
            stubs.channel.close()

    def left() -> tuple[float, float]:
        samples = server.metrics()
        sessions, tasks = samples.get("recurra_sessions", model="counter", version="1"), samples.get("recurra_tasks")
        assert tasks, "the server has some of its own"
        return sessions or 0.0, tasks

    def all_gone() -> bool:
        sessions, tasks = left()
        return sessions <= sessions_before and tasks <= tasks_before

    sessions_before, tasks_before = left()
    abandon()
    assert wait_until(all_gone)
    after_first = memory(server)
    abandon()
    assert wait_until(all_gone)
    assert memory(server) - after_first < 8 * MIB
    attack(
        "gRPC", "10,000 sessions opened and abandoned, twice", "all expired; no task left; resident memory as before"
    )


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Look again and again, each look being a request."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
    return True


def test_bounds_are_told(stubs: Stubs) -> None:
    chunk = [tensor(np.ones((65, 1)))]
    session_id = stubs.sessions.OpenSession(OpenSessionRequest(model="counter")).session.session_id
    error = failure(lambda: stubs.inference.Step(StepRequest(session_id=session_id, inputs=chunk)))
    assert error_info(error).metadata["limit"] == "64"
