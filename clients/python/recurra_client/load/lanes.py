"""Lanes: what sends the same message again and again, and sees that each was answered.

A lane opens its sessions, steps them and closes them over one and the same connection: where several processes
share a port, a session lives in the one that its connection was given to.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from recurra_client.load.frames import StreamEndedError
from recurra_client.load.judges import Judge, reason_of
from recurra_client.load.wire import WireConnection

_SESSIONS: Final = "/recurra.v1.SessionsService/"
_INFERENCE: Final = "/recurra.v1.InferenceService/"
OPEN: Final = _SESSIONS + "OpenSession"
CLOSE: Final = _SESSIONS + "CloseSession"
STREAM: Final = _INFERENCE + "StreamSteps"
UNARY: Final = _INFERENCE + "Step"
BATCH: Final = _INFERENCE + "StepBatch"

_FIRST_SECONDS = 30.0
_CALLS_AT_ONCE: Final = 64

T = TypeVar("T")
Call = tuple[str, bytes]
"""The path of a unary call, and its message."""


class RefusedError(Exception):
    """The server refused to open a session or failed its first step.

    Attributes:
        reason: One of docs/errors.md.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the server refuses a session ({self.reason})"


class UnansweredError(ConnectionError):
    """The server did not answer in time."""


class Lane(Protocol):
    """One sender.

    Attributes:
        sessions: How many each message holds a step of.
        answered: Called for each message that was answered, in their order, with the reasons of what failed in it.
        failed: Called once, when no more answers can come.
    """

    sessions: int
    answered: Callable[[Sequence[str]], None]
    failed: Callable[[Exception], None]

    async def open(self) -> None:
        """Open the sessions.

        Raises:
            RefusedError: The server does not take them.
            UnansweredError: It did not answer in time.
            Exception: The connection or the stream has failed.
        """
        ...

    def send(self) -> None:
        """Send the next message."""
        ...

    async def close(self) -> None:
        """Close the sessions, as far as there are any; to be called after the last answer."""
        ...


async def once(lane: Lane) -> None:
    """Send one message and await its answer.

    Raises:
        RefusedError: Something failed in it.
        UnansweredError: None came in time.
        Exception: The lane failed, with its reason.
    """
    answer: asyncio.Future[Sequence[str]] = asyncio.get_running_loop().create_future()

    def take(reasons: Sequence[str]) -> None:
        if not answer.done():
            answer.set_result(reasons)

    def fail(error: Exception) -> None:
        if not answer.done():
            answer.set_exception(error)

    lane.answered, lane.failed = take, fail
    lane.send()
    if reasons := await _in_time(answer):
        raise RefusedError(reasons[0])


async def call(connection: WireConnection, path: str, message: bytes) -> bytes:
    """Make a unary call: its reply.

    Raises:
        StreamEndedError: It failed.
    """
    reply = b""
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def received(message: bytes) -> None:
        nonlocal reply
        reply = message

    def ended(error: StreamEndedError | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(reply)

    stream = connection.open(path, received, ended)
    stream.send(stream.prepare(message, last=True))
    return await answer


async def _in_time(answer: "asyncio.Future[T]") -> T:
    try:
        async with asyncio.timeout(_FIRST_SECONDS):
            return await answer
    except TimeoutError:
        raise UnansweredError(
            f"the server did not answer a first message in {_FIRST_SECONDS:.0f} s: it is overloaded, or may not have "
            "as many files open as there are connections (ulimit -n)"
        ) from None


def _nobody(_: object) -> None:
    """Until somebody asks; a failure is told again at the next `send`."""


class StreamLane:
    """Messages on one bidirectional stream.

    Args:
        connection: Which it is one of the streams of.
        path: "/package.Service/Method".
        first: The first message, which opens the session.
        following: All others.
        judge: Looks at the replies.
        last: What closes the session, if anything does.
    """

    def __init__(
        self,
        connection: WireConnection,
        path: str,
        first: bytes,
        following: bytes,
        judge: Judge,
        last: bytes | None = None,
    ) -> None:
        self.sessions = 1
        self.answered: Callable[[Sequence[str]], None] = _nobody
        self.failed: Callable[[Exception], None] = _nobody
        self._error: Exception | None = None
        self._judge = judge
        self._last = last
        self._stream = connection.open(path, self._received, self._ended)
        self._frames = self._first = self._stream.prepare(first)
        self._following = self._stream.prepare(following)

    async def open(self) -> None:
        """Send the first message."""
        await once(self)

    def send(self) -> None:
        """Send the next message."""
        if self._error is not None:
            self.failed(self._error)
            return
        frames = self._frames
        self._frames = self._following
        self._stream.send(frames)

    async def close(self) -> None:
        """Send the last message and wait until the stream has ended."""
        if self._last is None or self._error is not None or self._frames is self._first:
            return
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answered = _nobody
        self.failed = lambda _: ended.set_result(None) if not ended.done() else None
        self._stream.send(self._stream.prepare(self._last, last=True))
        await ended

    def _received(self, message: bytes) -> None:
        reasons = self._judge(message)
        if reasons is not None:
            self.answered(reasons)

    def _ended(self, error: StreamEndedError | None) -> None:
        self._error = error or StreamEndedError("OK", "the server ended the stream")
        self.failed(self._error)


class UnaryLane:
    """A call for each message; one at a time, so that the answers keep their order.

    Args:
        connection: What the calls are made on.
        path: "/package.Service/Method".
        message: The message of every call.
        judge: Looks at the replies.
        sessions: How many sessions each message holds a step of.
        opening: The calls that open the sessions.
        closing: The calls that close them.
    """

    answered: Callable[[Sequence[str]], None]
    failed: Callable[[Exception], None]

    def __init__(
        self,
        connection: WireConnection,
        path: str,
        message: bytes,
        judge: Judge,
        sessions: int = 1,
        *,
        opening: Sequence[Call] = (),
        closing: Sequence[Call] = (),
    ) -> None:
        self.sessions = sessions
        self._connection = connection
        self._path = path
        self._message = message
        self._judge = judge
        self._opening = opening
        self._closing = closing
        self._opened = False
        self._reply = b""
        self._waiting = 0

    async def open(self) -> None:
        """Make the calls that open the sessions."""
        self._opened = True
        for error in await self._calls(self._opening):
            if isinstance(error, StreamEndedError) and "grpc-status" in error.trailers:
                raise RefusedError(reason_of(error))
            raise error

    def send(self) -> None:
        """Make the next call, once those before are answered."""
        self._waiting += 1
        if self._waiting == 1:
            self._call()

    async def close(self) -> None:
        """Make the calls that close the sessions."""
        if self._opened:
            await self._calls(self._closing)

    async def _calls(self, calls: Sequence[Call]) -> list[BaseException]:
        """Make calls, some at a time: what has failed."""
        failures: list[BaseException] = []
        for begin in range(0, len(calls), _CALLS_AT_ONCE):
            made = (call(self._connection, *one) for one in calls[begin : begin + _CALLS_AT_ONCE])
            answers = await _in_time(asyncio.gather(*made, return_exceptions=True))
            failures += [answer for answer in answers if isinstance(answer, BaseException)]
        return failures

    def _call(self) -> None:
        try:
            stream = self._connection.open(self._path, self._received, self._ended)
        except StreamEndedError as error:
            self.failed(error)
        else:
            stream.send(stream.prepare(self._message, last=True))

    def _received(self, message: bytes) -> None:
        self._reply = message

    def _ended(self, error: StreamEndedError | None) -> None:
        if error is not None and "grpc-status" not in error.trailers:
            self.failed(error)
            return
        self._waiting -= 1
        if self._waiting:
            self._call()
        failures = [reason_of(error)] * self.sessions if error is not None else self._judge(self._reply)
        self.answered(failures or ())
