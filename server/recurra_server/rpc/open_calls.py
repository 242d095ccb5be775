"""The calls that need no token. Anybody makes them: so little is read of each, of few at once, and for a short time."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc

from recurra_server.engine.errors import DeadlineError, EngineError, InvalidRequestError
from recurra_server.rpc.answers import until_read, write
from recurra_server.rpc.status import abort
from recurra_server.security.bounds import Bounds
from recurra_server.telemetry.metrics import EdgeCounts

_Context = grpc.aio.ServicerContext[Any, Any]
_MOST_BYTES: Final = 200  # "<name>/<version>" of a model has 129 at most
MOST_READING: Final = 16
"""Open calls whose messages may be long in coming. gRPC keeps what has come of each: up to --max-message-mb, however
little is wanted."""
_AT_LEAST: Final = 2.0
"""Seconds for the others' messages. One that is not kept back comes with its call, but of a thousand calls that come at
once gRPC reads one after another."""


class OpenCalls:
    """Makes of methods such that read for themselves, within bounds, and wait for nobody who does not read.

    Args:
        edge: Counts errors.
        bounds: A message must have come within `handshake_timeout`, an answer be read within `slow_reader_timeout`.
    """

    def __init__(self, edge: EdgeCounts, bounds: Bounds) -> None:
        self._edge = edge
        self._seconds = bounds.handshake_timeout
        self._patience = bounds.slow_reader_timeout
        self._reading: dict[asyncio.Timeout, float] = {}  # and until when each may wait in any case

    def bounded(self, handler: Any) -> Any:
        """A method that takes one message, within the bounds."""
        method = handler.unary_stream if handler.response_streaming else handler.unary_unary

        async def call(_: object, context: _Context) -> None:
            try:
                request = await self._read(context)
                if handler.response_streaming:
                    await method(request, context)
                else:
                    answer = await method(request, context)
                    await write(context, answer, self._edge, until_read(self._patience))
            except grpc.aio.InternalError:
                raise asyncio.CancelledError from None  # the caller has gone

        return grpc.stream_stream_rpc_method_handler(
            call, _short(handler.request_deserializer), handler.response_serializer
        )

    async def _read(self, context: _Context) -> Any:
        """The message of a call, which is ended where none comes, or none that can be taken."""
        try:
            request = await self._in_time(context)
        except EngineError as error:
            self._edge.count_error(error)
            await abort(context, error)
        if request is grpc.aio.EOF:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "there is no message")
        return request

    async def _in_time(self, context: _Context) -> Any:
        """What comes first. Where many wait for that, whoever has waited longest must not wait much longer."""
        if len(self._reading) >= MOST_READING:
            longest = next(iter(self._reading))
            until = self._reading.pop(longest)
            if not longest.expired():
                longest.reschedule(until)
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                self._reading[limit] = asyncio.get_running_loop().time() + min(self._seconds, _AT_LEAST)
                return await context.read()
        except TimeoutError:
            raise DeadlineError("the message of this call has not come in time", bound="handshake_timeout") from None
        finally:
            self._reading.pop(limit, None)


def _short(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """What reads a message, but only a short one."""

    def decode(data: bytes) -> Any:
        if len(data) > _MOST_BYTES:
            raise InvalidRequestError(f"the message of this call is over {_MOST_BYTES} bytes", field="message")
        return read(data)

    return decode
