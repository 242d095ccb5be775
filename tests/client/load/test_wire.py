"""The wire client: against python-hyper's h2, which refuses whatever breaks the protocol."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from recurra_client.load.frames import StreamEndedError
from recurra_client.load.wire import WireConnection, WireStream

from tests.client.load.peer import Behaviour, Peer, echo, listening

PATH = "/test.Echo/Echo"


class Call:
    """A stream, what it has received and how it ended."""

    def __init__(self, connection: WireConnection) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()
        self.ended: asyncio.Future[StreamEndedError | None] = asyncio.get_running_loop().create_future()
        self.stream: WireStream = connection.open(PATH, self.received.put_nowait, self.ended.set_result)

    def send(self, *messages: bytes, last: bool = False) -> None:
        for message in messages:
            self.stream.send(self.stream.prepare(message, last=last))

    async def receive(self, count: int) -> list[bytes]:
        async with asyncio.timeout(20):
            return [await self.received.get() for _ in range(count)]


@asynccontextmanager
async def connected(
    behave: Behaviour = echo, *, window: int = 65_535
) -> AsyncIterator[tuple[WireConnection, Peer, Call]]:
    async with listening(behave, window=window) as (target, peers), asyncio.timeout(30):
        connection = await WireConnection.connect(target)
        call = Call(connection)
        yield connection, await peers.get(), call
        connection.close()


async def test_messages_of_all_sizes_come_back_whole_and_in_order() -> None:
    sizes = [0, 1, 5, 16_378, 16_379, 16_380, 70_000, 300_000, 3]
    messages = [bytes([i]) * size for i, size in enumerate(sizes)]
    async with connected() as (_, _, call):
        call.send(*messages)
        assert await call.receive(len(messages)) == messages


async def test_a_call_is_announced_as_grpc() -> None:
    async with connected() as (_, peer, call):
        call.send(b"x")
        await call.receive(1)
        headers = peer.requests[1]
        authority = "127.0.0.1:" + str(peer.transport.get_extra_info("sockname")[1])
        assert headers == {
            ":method": "POST", ":scheme": "http", ":path": PATH, ":authority": authority,
            "content-type": "application/grpc", "te": "trailers",
        }  # fmt: skip


@pytest.mark.parametrize("window", [1, 100, 20_000, 65_535])
async def test_no_more_is_sent_than_the_server_gives_room_for(window: int) -> None:
    """h2 refuses whatever exceeds a window; a message larger than the window goes in parts."""
    size = 3 * window if window < 1000 else 200_000
    async with connected(window=window) as (_, peer, call):
        await peer.until(lambda: peer.settings == 1)  # until then the client may take it for 65,535
        call.send(b"a" * size, b"b")
        assert await call.receive(2) == [b"a" * size, b"b"]


async def test_what_the_server_takes_no_more_of_waits_for_room_on_stream_and_connection() -> None:
    async with connected(lambda *_: None) as (connection, peer, call):
        peer.withhold = True
        other = Call(connection)
        call.send(b"x" * 40_000)
        other.send(b"y" * 40_000, b"z")  # the connection's window is 65,535, each stream's as large
        await peer.until(lambda: len(peer.messages[1]) == 1)
        assert peer.messages[3] == []
        peer.h2.increment_flow_control_window(100_000)
        peer.flush()
        await peer.until(lambda: len(peer.messages[3]) == 2)
        assert peer.messages[3] == [b"y" * 40_000, b"z"]


async def test_a_window_that_settings_change_counts_for_open_streams_too() -> None:
    async with connected(lambda *_: None, window=10) as (_, peer, call):
        peer.withhold = True
        await peer.until(lambda: peer.settings == 1)
        call.send(b"x" * 1000)
        await peer.until(lambda: 1 in peer.requests)
        peer.h2.update_settings({4: 2000})
        peer.flush()
        await peer.until(lambda: len(peer.messages[1]) == 1)


async def test_room_that_was_used_is_given_back_to_the_server() -> None:
    parts, unacknowledged = 40, 1 << 24
    async with connected(lambda peer, stream, _: peer.send(stream, *[bytes(1 << 20)] * parts)) as (_, peer, call):
        call.send(b"go")
        assert sum(map(len, await call.receive(parts))) == parts << 20
        await peer.until(lambda: peer.h2.local_flow_control_window(1) > 2**31 - 1 - unacknowledged)


@pytest.mark.parametrize("piece", [1, 2, 7])
@pytest.mark.parametrize("padding", [0, 1, 255])
async def test_frames_may_be_cut_anywhere_and_padded(piece: int, padding: int) -> None:
    async with connected() as (_, peer, call):
        peer.piece, peer.padding = piece, padding
        messages = [b"", b"a", b"bcd" * 50]
        call.send(*messages)
        assert await call.receive(3) == messages


async def test_a_message_may_be_spread_over_frames_and_a_frame_hold_several() -> None:
    def answer(peer: Peer, stream: int, message: bytes) -> None:
        peer.frame = 3 if message == b"spread" else 16_000
        peer.send(stream, message * 10, b"", b"next")

    async with connected(answer) as (_, _, call):
        for message in (b"spread", b"together"):
            call.send(message)
            assert await call.receive(3) == [message * 10, b"", b"next"]


async def test_pings_and_settings_are_acknowledged() -> None:
    async with connected() as (_, peer, call):
        call.send(b"x")
        await call.receive(1)
        peer.h2.ping(b"12345678")
        peer.h2.update_settings({3: 7})
        peer.flush()
        await peer.until(lambda: peer.pings == 1 and peer.settings >= 2)


async def test_streams_share_a_connection_without_mixing() -> None:
    async with connected() as (connection, peer, call):
        others = [Call(connection) for _ in range(20)]
        for i, other in enumerate([call, *others]):
            other.send(bytes([i]), bytes([i]) * 20_000)
        for i, other in enumerate([call, *others]):
            assert await other.receive(2) == [bytes([i]), bytes([i]) * 20_000]
        assert len(peer.requests) == 21


async def test_a_unary_call_ends_on_both_sides() -> None:
    def answer(peer: Peer, stream: int, message: bytes) -> None:
        peer.send(stream, message)
        peer.end(stream, [("grpc-status", "0")])

    async with connected(answer) as (_, peer, call):
        call.send(b"x", last=True)
        assert await call.receive(1) == [b"x"]
        assert await call.ended is None
        assert peer.ended == [1]


async def test_a_cancelled_stream_is_reset_and_says_nothing_more() -> None:
    async with connected() as (_, peer, call):
        call.send(b"x")
        await call.receive(1)
        call.stream.cancel()
        await peer.until(lambda: peer.ended == [1])
        assert not call.ended.done()


async def _end(peer: Peer, how: str) -> None:
    if how == "status":
        peer.end(1, [("grpc-status", "14"), ("grpc-message", "going%20down%0Asoon"), ("x-why", "tired")])
    elif how == "no status":
        peer.end(1, [("x-why", "tired")])
    elif how == "reset":
        peer.h2.reset_stream(1, error_code=8)
    elif how == "goaway":
        peer.h2.close_connection(error_code=11, additional_data=b"too_many_pings", last_stream_id=0)
    elif how == "lost":
        peer.transport.abort()
    elif how == "goaway, then lost":
        peer.h2.close_connection(last_stream_id=1)
        peer.flush()
        peer.transport.close()
    peer.flush()


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("status", "UNAVAILABLE", "going down soon"),
        ("no status", "UNAVAILABLE", "the server ended the stream with no status"),
        ("reset", "UNAVAILABLE", "the server reset the stream (cancelled)"),
        ("goaway", "UNAVAILABLE", "the server is going away (too_many_pings)"),
        ("goaway, then lost", "UNAVAILABLE", "the server is going away"),
        ("lost", "UNAVAILABLE", "the server closed the connection"),
    ],
)
async def test_a_stream_that_the_server_ends_says_why_in_a_line(how: str, code: str, message: str) -> None:
    async with connected() as (_, peer, call):
        call.send(b"x")
        await call.receive(1)
        await _end(peer, how)
        error = await call.ended
        assert error is not None
        assert (error.code, error.message) == (code, message)
        if "x-why" in error.trailers:
            assert error.trailers["x-why"] == "tired"


async def test_goaway_leaves_the_streams_before_it_alone_and_lets_no_new_ones_begin() -> None:
    async with connected() as (connection, peer, call):
        call.send(b"x")
        await call.receive(1)
        # By hand: h2 would take nothing more after it.
        peer.transport.write((8).to_bytes(3) + bytes([7, 0]) + bytes(4) + (1).to_bytes(4) + bytes(4))
        peer.h2.ping(b"12345678")
        peer.flush()
        await peer.until(lambda: peer.pings == 1)
        call.send(b"y")
        assert await call.receive(1) == [b"y"]
        with pytest.raises(StreamEndedError, match="going away"):
            connection.open(PATH, lambda _: None, lambda _: None)


async def test_a_server_that_speaks_something_else_is_told_apart() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with asyncio.timeout(10):
        call = Call(await WireConnection.connect(f"{host}:{port}"))
        error = await call.ended
    assert error is not None
    assert error.message == "the server is no gRPC server: it does not speak HTTP/2"
    server.close()


async def test_large_headers_come_in_several_frames() -> None:
    async with connected() as (_, peer, call):
        call.send(b"x")
        await call.receive(1)
        peer.end(1, [("grpc-status", "8"), ("grpc-message", "no"), ("x-long", "z" * 50_000)])
        error = await call.ended
        assert error is not None
        assert (error.code, len(error.trailers["x-long"])) == ("RESOURCE_EXHAUSTED", 50_000)
