"""Calls that are answered with one message after another, as a generator makes them."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import grpc

from recurra_server.engine.errors import EngineError
from recurra_server.security.identity import CALLER
from recurra_server.telemetry.metrics import EdgeCounts

_Context = grpc.aio.ServicerContext[Any, Any]


def until_read(patience: float) -> asyncio.Timeout:
    """The time that a caller has to take in a message, in seconds; 0: as long as they like."""
    return asyncio.timeout(patience or None)


async def write(context: _Context, message: Any, edge: EdgeCounts, limit: asyncio.Timeout) -> None:
    """Send a message to a caller who has to take it in before a time is up; see `until_read`.

    Raises:
        asyncio.CancelledError: They did not, and the call is served no more. It has no status, which would have to
            wait behind the message.
    """
    try:
        async with limit:
            await context.write(message)
    except TimeoutError:
        edge.count_slow_reader()
        raise asyncio.CancelledError from None


class Answers:
    """A call that is answered with all that a generator yields.

    Attributes:
        identity: Whose call it is; None where callers are not told apart.
    """

    def __init__(self, context: _Context, edge: EdgeCounts, patience: float) -> None:
        self.identity = CALLER.get()
        self._context = context
        self._edge = edge
        self._patience = patience
        self._making: asyncio.Timeout | None = None
        self._sending: asyncio.Timeout | None = None
        self._expelled: EngineError | None = None

    def expel(self, error: EngineError) -> None:
        """Answer no more, and end the call with an error: at once, or when the caller has taken in what is sent.

        Told again, wait no longer for that: the call then ends without the error.
        """
        again, self._expelled = self._expelled is not None, error
        limit = self._sending if again else self._making
        if limit is not None and not limit.expired():
            limit.reschedule(0.0)

    async def run(self, responses: AsyncGenerator[Any, None]) -> None:
        """Send all responses.

        Raises:
            EngineError: The call was expelled, or making a response failed.
            asyncio.CancelledError: The caller does not read; see `write`.
        """
        async with contextlib.aclosing(responses):
            while (response := await self._next(responses)) is not None:
                await self._send(response)

    async def _next(self, responses: AsyncGenerator[Any, None]) -> Any:
        """The next response; None where there is none.

        Only this is broken off when the call is expelled: while a message is under way there can be no status.
        """
        self._raise_if_expelled()
        try:
            async with asyncio.timeout(None) as self._making:
                return await anext(responses, None)
        except TimeoutError:
            self._raise_if_expelled()
            raise
        finally:
            self._making = None

    async def _send(self, response: Any) -> None:
        self._sending = until_read(self._patience)
        try:
            await write(self._context, response, self._edge, self._sending)
        finally:
            self._sending = None

    def _raise_if_expelled(self) -> None:
        if self._expelled is not None:
            raise self._expelled from None
