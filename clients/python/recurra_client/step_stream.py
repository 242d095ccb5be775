"""One session's stream to the server that has it, begun anew whenever it has ended."""

import asyncio
from typing import Final

import grpc
from grpc import aio
from recurra.v1 import inference_pb2

from recurra_client.connection import Connection, route_by
from recurra_client.errors import RecurraError, UnavailableError, rpc_errors

_Call = aio.StreamStreamCall[inference_pb2.StreamStepsRequest, inference_pb2.StreamStepsResponse]
_END_SECONDS: Final = 1.0


class StepStream:
    """The StreamSteps call of one session.

    Each session has its own: none waits for another's message, and a proxy can send each to the server that owns it.
    """

    def __init__(self, connection: Connection, route: str) -> None:
        self._connection = connection
        self._route = route
        self._call: _Call | None = None

    async def exchange(self, request: inference_pb2.StreamStepsRequest) -> inference_pb2.StreamStepsResponse:
        """Send one message, and wait for its answer: a result or an error.

        Raises:
            RecurraError: There is none, as the call ended, with whatever status. So nobody knows what became of it.
        """
        call = self._call or self._begin()
        self._call = None  # put back once it has answered: a read that was cancelled ends it
        moving = False
        try:
            with rpc_errors():
                await call.write(request)
                while isinstance(reply := await call.read(), inference_pb2.StreamStepsResponse):
                    if reply.HasField("moving"):  # this step is still answered; the next one goes to another server
                        moving = True
                        continue
                    if not moving:
                        self._call = call
                    return reply
        except asyncio.InvalidStateError:  # it ended since the step before
            pass
        finally:
            if self._call is None:
                call.cancel()
        raise UnavailableError("the server ended the stream", reason="UNAVAILABLE", code=grpc.StatusCode.UNAVAILABLE)

    def leave(self) -> None:
        """Send the next message by a new call, perhaps to another server."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    async def end(self) -> None:
        """End the call in order."""
        call, self._call = self._call, None
        if call is None:
            return
        try:
            async with asyncio.timeout(_END_SECONDS):
                with rpc_errors():
                    await call.done_writing()
                    while await call.read() is not aio.EOF:
                        pass
        except (TimeoutError, RecurraError, asyncio.InvalidStateError):
            pass
        finally:
            call.cancel()

    def _begin(self) -> _Call:
        with rpc_errors():
            return self._connection.inference.StreamSteps(metadata=route_by(self._route))
