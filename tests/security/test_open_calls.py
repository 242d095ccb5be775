"""What somebody without a token can do with the calls that need none, and what comes back."""

import struct
import threading
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame
from recurra.v1.models_pb2 import LoadModelRequest, UnloadModelRequest
from recurra.v1.sessions_pb2 import DrainSessionsRequest

from tests.security.conftest import Attack, failure, reason_of, refused
from tests.security.test_http2 import keep_alive, until
from tests.support.http2 import Rude
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stubs

WATCH = "/grpc.health.v1.Health/Watch"
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
        "gRPC", "Watch without a token, whose answers are not read", "models are loaded, health told, the server ends"
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


def test_a_newcomer_takes_the_place_of_who_has_watched_longest(bounded: ServerProcess, attack: Attack) -> None:
    connections, calls = [Stubs(bounded.target) for _ in range(4)], []
    for stubs in connections * 16:
        calls.append(stubs.health.Watch(health_pb2.HealthCheckRequest(), timeout=60))
        assert next(calls[-1]).status == SERVING
    assert {reason_of(failure(partial(next, call))) for call in calls[:4]} == {"RESOURCE_EXHAUSTED CAPACITY"}
    assert not any(call.done() for call in calls[4:])
    for stubs in connections:
        stubs.channel.close()
    attack("gRPC", "more who watch than --max-connections", "whoever has watched longest: RESOURCE_EXHAUSTED CAPACITY")
