"""How gRPC and the event loop work together."""

import asyncio
import socket
from typing import Any

import grpc
import pytest
from recurra_server.rpc import transport


def test_what_grpc_tells_is_taken_at_once() -> None:
    """With however many bytes in the socket, gRPC's reader finds one: it takes one, and then all events."""
    told, teller = socket.socketpair()
    with told, teller:
        found: list[bytes] = []
        call = transport._take_bytes_before(told, lambda *_: found.append(told.recv(1000)))
        for count in (1, 7, 1):
            teller.send(b"1" * count)
            call()
    assert found == [b"1"] * 3


def test_the_loop_knows_grpcs_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told by the name of a class of gRPC's: should that change, the server would only be slower."""
    wrapped: list[Any] = []

    def wrap(_: socket.socket, callback: Any) -> Any:
        wrapped.append(callback)
        return callback

    async def begin_and_end() -> None:
        server = grpc.aio.server()
        server.add_insecure_port("127.0.0.1:0")
        await server.start()
        await server.stop(None)

    monkeypatch.setattr(transport, "_take_bytes_before", wrap)
    with asyncio.Runner(loop_factory=transport.new_event_loop) as runner:
        runner.run(begin_and_end())
    assert len(wrapped) == 1
