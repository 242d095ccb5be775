"""What the streams of all APIs have in common.

A task reads and submits; what the engine answers is written at once. A failed message is answered with an error and
the stream goes on. A caller who sends faster than it reads is made to wait: the reader stops at a bound of
unanswered messages.
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any

import grpc

from recurra_server.engine.errors import (
    DrainingError,
    EngineError,
    UnauthenticatedError,
)
from recurra_server.rpc.answers import Answers
from recurra_server.rpc.opened import Opened
from recurra_server.rpc.status import abort
from recurra_server.rpc.turnstile import Turnstile
from recurra_server.rpc.writer import EagerWriter
from recurra_server.security.identity import CALLER, Identity
from recurra_server.telemetry.metrics import EdgeCounts
from recurra_server.tracecontext import TRACE

_Context = grpc.aio.ServicerContext[Any, Any]


class Stream(ABC):
    """One bidirectional call, each of whose messages is answered with one.

    Args:
        context: The call.
        window: Messages that may be read and not yet answered.
        max_steps: Time steps in these, beyond a message: what is answered to a few long chunks is as much as to
            many steps.
        max_sessions: Sessions that were opened on it and are not closed.

    Attributes:
        gone: Whether the call is over.
        opened: The sessions that were opened on it.
        trace: What the call is part of; None where nothing is traced.
        identity: Whose call it is; None where callers are not told apart.
        turnstile: What keeps callers from crowding one another out; None likewise.
    """

    def __init__(self, context: _Context, *, window: int, max_steps: int, max_sessions: int) -> None:
        self.gone = False
        self.opened = Opened(max_sessions)
        self.trace = TRACE.get()
        self.identity = CALLER.get()
        self.turnstile: Turnstile | None = None
        self._context = context
        self._window = window
        self._max_steps = max_steps
        self._unanswered = self._unanswered_steps = 0
        self._writer = EagerWriter(context.write, self._written, self._fail)
        self._sending: object = None
        self._sending_since = 0.0
        self._room: asyncio.Future[None] | None = None  # what the reader waits for when the window is full
        self._all_read = False
        self._expelled: EngineError | None = None
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @abstractmethod
    def _accept(self, request: Any) -> Awaitable[None] | None:
        """Do what a message asks for; whatever fails becomes its answer. Must not raise.

        What is returned is awaited before the next message is read: where a session is opened, or has to be found.

        The answer is put into `_writer`, sooner or later, with the number of time steps that were added to
        `_unanswered_steps` for it.
        """

    @abstractmethod
    def announce(self, grace: float) -> None:
        """Tell the caller that the server shuts down, and in how many seconds the stream is ended."""

    async def run(self) -> None:
        """Serve the stream until the caller has sent and received all.

        Raises:
            EngineError: A message could not be read.
        """
        reader = asyncio.ensure_future(self._read())
        try:
            await self._finished
        finally:
            self.gone = True
            self._writer.close()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        if self._expelled is not None:
            await abort(self._context, self._expelled)

    def expel(self, error: EngineError) -> None:
        """Read no more, answer what was read, and end the stream with an error; told again, end it as it is.

        Else it would last for as long as its caller reads no answers, or a step waits for a store that is away.
        """
        again = self._expelled is not None
        self._expelled, self._all_read = error, True
        if not again:
            self._check_finished()
        elif self._writer.sending is not None:
            self.cut()
        elif not self._finished.done():
            self._writer.close()  # behind an answer that were begun before `run` goes on, the error would wait
            self._finished.set_result(None)

    def is_stuck(self, now: float, patience: float) -> bool:
        """Whether the caller has not taken in what is being sent for so many seconds; to be asked now and then."""
        sending = self._writer.sending
        if sending is None or sending is not self._sending:
            self._sending, self._sending_since = sending, now
            return False
        return now - self._sending_since > patience

    def cut(self) -> None:
        """Serve the call no more, and drop what it holds.

        There is no status, which would have to wait behind what is not read. gRPC keeps the message that it cannot
        send until the connection ends: its Python server has no way to reset a stream.
        """
        self._sending = None
        self._writer.abandon()
        if not self._finished.done():
            self._finished.cancel()

    async def _read(self) -> None:
        read = self._context.read
        try:
            while not self._all_read and (request := await read()) is not grpc.aio.EOF:
                if self.turnstile is not None and self.identity is not None:
                    wait = self.turnstile.pay(self.identity.account)
                    if wait is not None:
                        await wait
                if self._all_read:  # expelled meanwhile: what was just read does not count
                    break
                self._unanswered += 1
                if (rest := self._accept(request)) is not None:
                    await rest
                del request  # which takes many times what came over the wire, and the next one may be long in coming
                if self.turnstile is not None and self.identity is not None:
                    wait = self.turnstile.enter(self.identity.account)
                    if wait is not None:
                        await wait
                while self._unanswered >= self._window or self._unanswered_steps > self._max_steps:
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
        except EngineError as error:  # what came cannot be read
            self._fail(error.with_traceback(None))  # whose frames hold it
        except Exception as error:
            self._fail(error)
        self._all_read = True
        self._check_finished()

    def _written(self, steps: int) -> None:
        """A response was sent."""
        self._unanswered -= 1
        self._unanswered_steps -= steps
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        if self._all_read:
            self._check_finished()

    def _check_finished(self) -> None:
        if self._all_read and not self._unanswered and not self._finished.done():
            self._finished.set_result(None)

    def _fail(self, error: BaseException) -> None:
        """The connection is gone, or a bug: either ends the stream."""
        if self._finished.done():
            return
        if isinstance(error, grpc.aio.InternalError):  # gRPC takes nothing more for a call that is over
            self._finished.cancel()
        else:
            self._finished.set_exception(error)


class OpenStreams:
    """All streams of all APIs: told when the server shuts down, and ended when its patience is over.

    Args:
        edge: Counts what is seen here.
        turnstile: What keeps callers from crowding one another out; None where they are not told apart.
        patience: Seconds in which a caller must take in what is sent; 0: as many as they like.
    """

    def __init__(self, edge: EdgeCounts, turnstile: Turnstile | None = None, *, patience: float = 0.0) -> None:
        self._edge = edge
        self._turnstile = turnstile
        self._patience = patience
        self._streams: set[Stream] = set()
        self._answers: set[Answers] = set()
        self._none = asyncio.Event()
        self._grace: float | None = None  # set while the server shuts down

    def __len__(self) -> int:
        """How many there are."""
        return len(self._streams)

    async def serve(self, stream: Stream, context: _Context) -> None:
        """Serve a stream to its end."""
        with self._opened(stream):
            try:
                await stream.run()
            except EngineError as error:
                self._edge.count_error(error)
                await abort(context, error)

    async def answer(self, responses: AsyncGenerator[Any, None], context: _Context) -> None:
        """Answer a call that is no `Stream` with all that a generator yields.

        Raises:
            EngineError: Its caller would not be let in any more, or making a response failed.
            asyncio.CancelledError: Its caller does not read.
        """
        answers = Answers(context, self._edge, self._patience)
        self._answers.add(answers)
        try:
            await answers.run(responses)
        finally:
            self._answers.discard(answers)

    async def drain(self, grace: float) -> None:
        """Tell all streams to move; return when they have ended, or have been ended after `grace` seconds."""
        self._grace = grace
        for stream in self._streams:
            stream.announce(grace)
        for patience in (grace, 1.0):
            self._none.clear()
            if self._streams:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._none.wait(), patience)
            for stream in self._streams:
                stream.expel(DrainingError("the server shuts down; go on elsewhere", retry_after=0.1))

    async def watch_readers(self, clock: Callable[[], float]) -> None:
        """Cut off, for good, the streams whose callers have taken nothing in for too long."""
        while True:
            await asyncio.sleep(self._patience / 4)
            for stream in list(self._streams):
                if stream.is_stuck(clock(), self._patience):
                    self._edge.count_slow_reader()
                    stream.cut()

    def end_where_not(self, still_holds: Callable[[Identity], bool]) -> None:
        """End the streams and answers of those who would not be let in any more: some now, the others when asked again.

        What waits for its caller to read, or for a store, has the time in between.
        """
        gone = UnauthenticatedError("what you showed has expired, or was taken back, since the call began")
        calls: list[Stream | Answers] = [*self._streams, *self._answers]
        for call in calls:
            if call.identity is not None and not still_holds(call.identity):
                call.expel(gone)

    @contextlib.contextmanager
    def _opened(self, stream: Stream) -> Iterator[None]:
        self._streams.add(stream)
        stream.turnstile = self._turnstile
        self._edge.streams += 1
        if self._grace is not None:
            stream.announce(self._grace)
        try:
            yield
        finally:
            self._streams.discard(stream)
            self._edge.streams -= 1
            if not self._streams:
                self._none.set()
