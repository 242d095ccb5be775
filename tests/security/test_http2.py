"""What somebody can make the server spend with connections and frames, below the calls, and what comes back."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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

from tests.security.conftest import MIB, failure, memory, reason_of, refused, wait_until
from tests.support.attacks import Attack
from tests.support.authority import Authority
from tests.support.http2 import PREFACE, Rude
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stream, Stubs, tensor

STREAM = "/recurra.v1.InferenceService/StreamSteps"
STEP = "/recurra.v1.InferenceService/Step"
pytestmark = pytest.mark.usefixtures("_serves_on")


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


def test_a_message_that_only_claims_to_be_large_costs_nothing(bounded: ServerProcess, attack: Attack) -> None:
    before = memory(bounded)
    with Rude(bounded.target) as rude:
        claim = b"\0" + struct.pack(">I", 0xFFFF_FFFF)
        for number in range(1, 21, 2):
            rude.send(rude.call(number, STEP), DataFrame(number, claim))
        assert ended(until(rude, lambda seen: ended(seen) >= 10)) >= 10
    assert memory(bounded) - before < 16 * MIB
    attack("gRPC port", "a message that says it has 4 GiB", "refused when its first five bytes are there")


def test_headers_over_the_bound_are_refused(stubs: Stubs, attack: Attack) -> None:
    metadata = (("x", "y" * 20_000),)
    call = StepRequest(session_id="a")
    assert refused(lambda: stubs.inference.Step(call, metadata=metadata)) == "RESOURCE_EXHAUSTED"
    attack("gRPC port", "headers over --max-header-kb", "RESOURCE_EXHAUSTED")


def test_headers_that_are_no_text_are_not_logged(bounded: ServerProcess, attack: Attack) -> None:
    odd = b"/secret\xf8\xd4"
    with Rude(bounded.target) as rude:
        rude.send(rude.call(1, odd), rude.call(3, note=odd))
        assert ended(until(rude, lambda seen: ended(seen) > 0)) == 1
    assert "secret" not in bounded.output
    assert "Traceback" not in bounded.output
    attack("gRPC port", "headers that are no text", "UNIMPLEMENTED; not logged")


def test_more_streams_than_a_connection_may_have_are_refused(bounded: ServerProcess, attack: Attack) -> None:
    with Rude(bounded.target) as rude:
        for frame in rude.frames():
            if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
                assert frame.settings[SettingsFrame.MAX_CONCURRENT_STREAMS] == 20
                break
        rude.send(*(rude.call(number, STREAM) for number in range(1, 200, 2)))
        frames = until(rude, lambda seen: ended(seen) >= 80)
        assert rude.closed or ended(frames) >= 80
    attack("gRPC port", "more streams than --max-streams-per-connection", "refused, or the connection is closed")


def test_a_connection_on_which_nothing_is_said_is_closed(bounded: ServerProcess, attack: Attack) -> None:
    for tried, first in {
        "a connection that says nothing": b"",
        "a connection that sends a part of the preface, and waits": PREFACE[:10],
        "a connection that sends the preface, and waits": PREFACE,
    }.items():
        with Rude(bounded.target, preface=False) as rude:
            rude.raw(first)
            assert is_closed(rude)
        attack("gRPC port", tried, "closed after --handshake-timeout")


def test_a_handshake_that_is_not_gone_on_with_is_cut_off(
    bounded: ServerProcess, repository: Path, tmp_path: Path, attack: Attack
) -> None:
    authority = Authority(tmp_path)
    flags = (*authority.flags(), "--handshake-timeout", "1", "--no-metrics")
    with running_server(repository, *flags, ready="whoever can") as encrypted:
        for first in (b"", b"\x16\x03\x01\x02\x00\x01"):
            with Rude(encrypted.target, preface=False) as rude:
                rude.raw(first)
                assert is_closed(rude)
        assert Stubs(encrypted.target, authority.credentials()).health.Check(health_pb2.HealthCheckRequest()).status
    attack(
        "gRPC port", "a handshake that is begun, and not gone on with (slow loris)", "closed after --handshake-timeout"
    )


def test_who_does_not_answer_pings_is_taken_for_gone(bounded: ServerProcess, attack: Attack) -> None:
    with Rude(bounded.target) as rude:
        rude.send(rude.call(1, STREAM))  # headers, and then nothing more
        assert is_closed(rude)
    attack("gRPC port", "a call that is begun, and then silence (slow loris)", "closed when two pings are not answered")


def test_slow_headers_are_held_by_one_connection_only(bounded: ServerProcess, stubs: Stubs, attack: Attack) -> None:
    """Headers that come byte by byte: nothing else is served on that connection, and everything on others."""
    with Rude(bounded.target) as rude:
        block = rude.headers("/grpc.health.v1.Health/Check")
        rude.send(HeadersFrame(1, block[:1]))
        for position in range(1, len(block)):
            if not rude.send(ContinuationFrame(1, block[position : position + 1])):
                break
            if position % 50 == 0:
                assert stubs.health.Check(health_pb2.HealthCheckRequest(), timeout=30).status == 1
        assert is_closed(rude)
    attack("gRPC port", "headers byte by byte (slow loris)", "others are served; closed when pings are not answered")


def test_a_ping_flood_ends_the_connection(bounded: ServerProcess, attack: Attack) -> None:
    with Rude(bounded.target) as rude:
        for number in range(10_000):
            if not rude.send(PingFrame(0, opaque_data=number.to_bytes(8, "big"))):
                break
        frames = list(rude.frames())
    assert any(isinstance(frame, GoAwayFrame) and frame.error_code == 11 for frame in frames)
    attack("gRPC port", "a flood of pings", "GOAWAY ENHANCE_YOUR_CALM")


def flood(bounded: ServerProcess, frames: Callable[[Rude, int], Any], count: int) -> int:
    """Send many frames, while somebody else works; return how often that one was served meanwhile."""
    stubs, done, served = Stubs(bounded.target), threading.Event(), 0

    def attacker() -> None:
        with contextlib.suppress(OSError), Rude(bounded.target) as rude:
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
def test_a_flood_does_not_keep_others_out(bounded: ServerProcess, tried: str, attack: Attack) -> None:
    count, frames = FLOODS[tried]
    before = memory(bounded)
    assert flood(bounded, frames, count) > 0
    assert memory(bounded) - before < 64 * MIB
    attack("gRPC port", f"a flood of {tried}", "others are served meanwhile; memory stays")


def test_more_connections_than_there_may_be_are_closed(bounded: ServerProcess, stubs: Stubs, attack: Attack) -> None:
    stubs.health.Check(health_pb2.HealthCheckRequest())
    host, _, port = bounded.target.rpartition(":")
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection((host, int(port)), 30))
        assert stubs.health.Check(health_pb2.HealthCheckRequest(), timeout=30).status == 1
    attack("gRPC port", "more connections than --max-connections", "closed; those that are open are served")


def test_who_reads_nothing_is_cut_off(bounded: ServerProcess, attack: Attack) -> None:
    """A stream whose caller has left no room for answers."""
    before = memory(bounded)
    opening = StreamStepsRequest(open=OpenSessionRequest(model="wide"), inputs=[tensor([1.0])])
    step = StreamStepsRequest(inputs=[tensor([1.0])])

    def framed(message: Message) -> bytes:
        data = message.SerializeToString()
        return b"\0" + struct.pack(">I", len(data)) + data

    def counted(name: str, **labels: str) -> float:
        return bounded.metrics().get(name, **labels) or 0.0

    cut_before = counted("recurra_errors_total", reason="slow_reader", fault="other")
    generate = GenerateRequest(model=ModelVersion(name="echo"), inputs=[tensor([1.0])], max_steps=64)
    with Rude(bounded.target, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as rude:
        threading.Thread(target=keep_alive, args=(rude,), daemon=True).start()
        rude.send(
            rude.call(1, STREAM), DataFrame(1, framed(opening)), *(DataFrame(1, framed(step)) for _ in range(500))
        )
        rude.send(rude.call(3, "/recurra.v1.InferenceService/Generate"))
        rude.send(DataFrame(3, framed(generate), flags=["END_STREAM"]))
        assert wait_until(
            lambda: counted("recurra_errors_total", reason="slow_reader", fault="other") == cut_before + 2
        )
        assert wait_until(lambda: counted("recurra_streams") == 0)
        assert not rude.closed
        assert memory(bounded) - before < 64 * MIB
    attack("gRPC port", "a stream or an answer that is not read", "served no more; what it holds is bounded")


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
    attack("gRPC port", "a connection held open for ever", "ended after --max-connection-age")


def test_a_connection_on_which_nothing_is_called_is_ended(repository: Path, attack: Attack) -> None:
    flags = ("--max-connection-idle", "1", "--handshake-timeout", "1000", "--no-metrics")
    with running_server(repository, *flags, ready="whoever can") as server, Rude(server.target) as rude:
        rude.send(rude.call(1), DataFrame(1, bytes(5), flags=["END_STREAM"]))
        *_, last = until(rude, lambda seen: isinstance(seen[-1], GoAwayFrame))
        assert last.additional_data == b"connection idle"
        assert is_closed(rude)
    attack("gRPC port", "a connection held open, on which nothing is called", "ended after --max-connection-idle")
