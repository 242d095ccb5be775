"""What somebody without a token can do with the calls that need none, and what comes back."""

import asyncio
import struct
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hyperframe.frame import DataFrame, Frame, HeadersFrame, PingFrame, SettingsFrame
from recurra.openinference.open_inference_pb2 import ServerLiveRequest
from recurra.v1.models_pb2 import LoadModelRequest, UnloadModelRequest
from recurra.v1.sessions_pb2 import DrainSessionsRequest
from recurra_server.rpc.open_calls import MOST_READING

from tests.security.conftest import budget_spent, failure, reason_of, refused, wait_until
from tests.security.test_http2 import ended, keep_alive, until
from tests.support.attacks import Attack
from tests.support.http2 import Rude
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stubs

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
LIVE = "/inference.GRPCInferenceService/ServerLive"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def check(stubs: Stubs, service: str = "") -> int:
    """What a server says of a service."""
    status: int = stubs.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status
    return status


def whole(number: int, message: Message) -> DataFrame:
    """A call's only message."""
    data = message.SerializeToString()
    return DataFrame(number, b"\0" + struct.pack(">I", len(data)) + data, flags=["END_STREAM"])


def watched(number: int, rude: Rude, service: str) -> tuple[HeadersFrame, DataFrame]:
    """A call that watches a service."""
    return rude.call(number, WATCH), whole(number, health_pb2.HealthCheckRequest(service=service))


def begun(frames: list[Any]) -> int:
    """Calls to which an answer has begun."""
    return len({frame.stream_id for frame in frames if isinstance(frame, HeadersFrame)})


def test_a_watch_that_is_not_read_holds_nothing_up(repository: Path, attack: Attack) -> None:
    with running_server(repository, "--no-metrics", ready="whoever can") as server:
        stubs = Stubs(server.target)
        with Rude(server.target, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as rude, stubs.channel:
            rude.send(*watched(1, rude, ""), *watched(3, rude, "counter"), *watched(5, rude, "counter/1"))
            until(rude, lambda seen: begun(seen) == 3)
            threading.Thread(target=keep_alive, args=(rude,), daemon=True).start()
            assert not stubs.models.LoadModel(LoadModelRequest(name="counter"), timeout=20).changed
            stubs.models.UnloadModel(UnloadModelRequest(name="counter"), timeout=20)
            assert check(stubs, "counter") == NOT_SERVING
            stubs.sessions.DrainSessions(DrainSessionsRequest(grace=Duration()), timeout=20)
            assert check(stubs) == NOT_SERVING
            server.terminate()
            assert server.wait() == 0
    attack(
        "gRPC port",
        "Watch without a token, whose answers are not read",
        "models are loaded, health told, the server ends",
    )


def test_whoever_watches_is_told_as_others_servers_do(repository: Path) -> None:
    with running_server(repository, "--no-metrics", ready="whoever can") as server:
        stubs = Stubs(server.target)
        with stubs.channel:
            names = ("", "counter", "absent")
            server_wide, model, absent = (
                stubs.health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=60) for name in names
            )
            assert [next(call).status for call in (server_wide, model, absent)] == [
                SERVING, SERVING, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
            ]  # fmt: skip
            stubs.models.UnloadModel(UnloadModelRequest(name="counter"))
            assert next(model).status == NOT_SERVING
            stubs.models.LoadModel(LoadModelRequest(name="counter"))
            assert next(model).status == SERVING
            assert refused(lambda: check(stubs, "absent")) == "NOT_FOUND"
            stubs.sessions.DrainSessions(DrainSessionsRequest(grace=Duration()))
            assert next(server_wide).status == next(model).status == NOT_SERVING
            stubs.models.LoadModel(LoadModelRequest(name="counter"))
            assert check(stubs, "counter") == NOT_SERVING


def wait_for_ends(rude: Rude, count: int) -> bool:
    """Wait until the server has ended so many calls, and not the connection."""
    seen: list[Frame] = []
    patience = time.monotonic() + 30
    for frame in rude.frames():
        assert time.monotonic() < patience
        if isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            rude.send(PingFrame(0, opaque_data=frame.opaque_data, flags=["ACK"]))
        seen.append(frame)
        if ended(seen) == count:
            return True
    return False


@pytest.fixture
def patient(repository: Path) -> Iterator[ServerProcess]:
    """A server that waits for ever for messages."""
    with running_server(repository, "--handshake-timeout", "1000", "--no-metrics", ready="whoever can") as server:
        yield server


def begin_messages(rude: Rude, count: int) -> None:
    """Begin calls, each with the beginning of a message of a megabyte."""
    for number in range(1, 2 * count, 2):
        method = (CHECK, WATCH, LIVE)[number // 2 % 3]
        rude.send(rude.call(number, method), DataFrame(number, b"\0" + struct.pack(">I", 1 << 20) + b"\n"))


async def watch(target: str, count: int) -> set[int]:
    """What so many calls are told that begin to watch at once."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        calls = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=20) for _ in range(count)]
        return {answer.status for answer in await asyncio.gather(*(call.read() for call in calls))}


async def test_few_messages_without_a_token_are_waited_for(patient: ServerProcess, attack: Attack) -> None:
    stubs = Stubs(patient.target)
    with Rude(patient.target) as rude, stubs.channel:
        begin_messages(rude, 100)
        assert wait_for_ends(rude, 100 - MOST_READING)
        assert check(stubs) == SERVING
        assert stubs.open_inference.ServerLive(ServerLiveRequest(), timeout=20).live
        assert await watch(patient.target, 2000) == {SERVING}
    attack(
        "gRPC port",
        "many calls without a token, whose messages do not come to an end",
        "all but 16 ended; others are served",
    )


def test_a_message_without_a_token_is_not_waited_for_long(bounded: ServerProcess, attack: Attack) -> None:
    before = budget_spent(bounded)
    with Rude(bounded.target) as rude:
        begin_messages(rude, 3)
        assert wait_for_ends(rude, 3)
    assert bounded.metrics().get("recurra_errors_total", reason="deadline", fault="other") == 3
    assert budget_spent(bounded) == before, "nobody is to be woken by who has no token"
    attack("gRPC port", "a call without a token whose message does not come to an end", "DEADLINE_EXCEEDED")


def test_a_long_message_without_a_token_is_refused(stubs: Stubs, attack: Attack) -> None:
    request = health_pb2.HealthCheckRequest(service="x" * 500_000)
    assert refused(lambda: stubs.health.Check(request)) == "INVALID_ARGUMENT INVALID_REQUEST"
    assert refused(lambda: stubs.health.Watch(request)) == "INVALID_ARGUMENT INVALID_REQUEST"
    attack("gRPC port", "a long message without a token", "INVALID_ARGUMENT")


def test_answers_that_are_not_read_are_given_up(bounded: ServerProcess, attack: Attack) -> None:
    def cut() -> float:
        return bounded.metrics().get("recurra_errors_total", reason="slow_reader", fault="other") or 0.0

    before = cut()
    with Rude(bounded.target, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as rude:
        threading.Thread(target=keep_alive, args=(rude,), daemon=True).start()
        rude.send(*watched(1, rude, ""), rude.call(3), whole(3, health_pb2.HealthCheckRequest()))
        assert wait_until(lambda: cut() == before + 2)
    attack(
        "gRPC port", "health without a token, whose answer is not read", "served no more after --slow-reader-timeout"
    )


def test_a_newcomer_takes_the_place_of_who_has_watched_longest(bounded: ServerProcess, attack: Attack) -> None:
    connections, calls, before = [Stubs(bounded.target) for _ in range(4)], [], budget_spent(bounded)
    for stubs in connections * 16:
        calls.append(stubs.health.Watch(health_pb2.HealthCheckRequest(), timeout=60))
        assert next(calls[-1]).status == SERVING
    assert {reason_of(failure(partial(next, call))) for call in calls[:4]} == {"RESOURCE_EXHAUSTED CAPACITY"}
    assert not any(call.done() for call in calls[4:])
    assert budget_spent(bounded) == before
    for stubs in connections:
        stubs.channel.close()
    attack(
        "gRPC port", "more who watch than --max-connections", "whoever has watched longest: RESOURCE_EXHAUSTED CAPACITY"
    )
