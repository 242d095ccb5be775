"""A gRPC proxy that works on messages: it loses replies, repeats requests and cuts connections.

It passes on any unary call and any bidirectional one that answers each message with one, as bytes.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pool
from grpc import aio

from tests.support.proxy import TcpProxy

_Context = aio.ServicerContext[Any, Any]

MISCHIEF: Final = {
    "request lost": 0.05,
    "reply lost": 0.08,
    "repeated": 0.08,
    "repeated late": 0.08,
    "connection cut": 0.02,
    "moved": 0.03,
}
"""How often what happens to a message, most of which pass unharmed. "silence" is a reply that never comes."""


class RpcProxy(grpc.GenericRpcHandler):
    """Stands between clients and servers.

    Attributes:
        target: "host:port" to connect to.
        happened: What befell how many messages.

    Args:
        upstreams: "host:port" of the servers. Calls go to one of them, until one is "moved": then to any.
        seed: Of what happens.
        mischief: How often, by its name.
    """

    def __init__(self, upstreams: Sequence[str], seed: int, mischief: Mapping[str, float] = MISCHIEF) -> None:
        self.happened: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._mischief = mischief
        self._channels: list[Any] = [aio.insecure_channel(upstream) for upstream in upstreams]
        self._home = self._channels[0]
        self._late: list[tuple[str, bytes]] = []
        self._server = aio.server(handlers=[self])
        self._network = TcpProxy(f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}")

    @property
    def target(self) -> str:
        """Where it listens."""
        return self._network.target

    async def start(self) -> None:
        """Begin to pass calls on."""
        await self._server.start()
        await self._network.start()

    async def stop(self) -> None:
        """End all calls."""
        await self._network.stop()
        await self._server.stop(grace=None)
        for channel in self._channels:
            await channel.close()

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """Find who serves a call."""
        method = details.method
        known = descriptor_pool.Default().FindMethodByName(method.strip("/").replace("/", "."))
        if known.client_streaming:
            return grpc.stream_stream_rpc_method_handler(partial(self._stream, method))
        return grpc.unary_unary_rpc_method_handler(partial(self._unary, method))

    # --- calls ---------------------------------------------------------------------------

    async def _unary(self, method: str, request: bytes, context: _Context) -> Any:
        async def exchange() -> Any:
            return await self._home.unary_unary(method)(request, timeout=10)

        return await self._message(method, request, context, exchange)

    async def _stream(self, method: str, _: AsyncIterator[bytes], context: _Context) -> None:
        upstream: Any = self._home.stream_stream(method)()

        async def exchange() -> bytes | None:
            await upstream.write(request)
            answer = await upstream.read()
            return None if answer is aio.EOF else answer

        try:
            while (request := await context.read()) is not aio.EOF:
                answer = await self._message(method, request, context, exchange)
                if answer is None:
                    break
                await context.write(answer)
        finally:
            upstream.cancel()

    async def _message(self, method: str, request: bytes, context: _Context, exchange: Any) -> Any:
        """What becomes of one message, and of its reply."""
        fate = self._fate()
        self.happened[fate] += 1
        if fate == "moved":
            self._home = self._random.choice(self._channels)
        if fate == "request lost":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the proxy lost the request")
        await self._repeat_late()
        try:
            answer = await exchange()
            if fate == "repeated":
                answer = await exchange()
        except aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
        except asyncio.InvalidStateError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server ended the stream")
        if fate == "reply lost":
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the proxy lost the reply")
        elif fate == "silence":
            await asyncio.Event().wait()  # until the caller gives up
        elif fate == "connection cut":
            self._network.cut()
        elif fate == "repeated late":
            self._late.append((method, request))
        return answer

    async def _repeat_late(self) -> None:
        """Something that was sent before is sent once more, to anybody; nobody hears of the answer."""
        if self._late and self._random.random() < 0.3:
            method, request = self._late.pop(self._random.randrange(len(self._late)))
            channel = self._random.choice(self._channels)
            try:
                if method.endswith("StreamSteps"):
                    stream: Any = channel.stream_stream(method)()
                    await stream.write(request)
                    await stream.read()
                    stream.cancel()
                else:
                    await channel.unary_unary(method)(request, timeout=10)
            except aio.AioRpcError:
                pass

    def _fate(self) -> str:
        drawn = self._random.random()
        for fate, rate in self._mischief.items():
            drawn -= rate
            if drawn < 0:
                return fate
        return "passed"


@asynccontextmanager
async def rpc_proxy(
    upstreams: Sequence[str], seed: int, mischief: Mapping[str, float] = MISCHIEF
) -> AsyncIterator[RpcProxy]:
    """A proxy for the length of an `async with` block."""
    proxy = RpcProxy(upstreams, seed, mischief)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
