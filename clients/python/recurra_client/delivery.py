"""Getting a session's steps to the server in order, each applied exactly once, whatever the connection does."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple, cast

import grpc
from recurra.v1 import inference_pb2, sessions_pb2, tensor_pb2

from recurra_client.connection import Connection
from recurra_client.errors import (
    CapacityError,
    ClientClosedError,
    DeadlineExceededError,
    ForbiddenError,
    RecurraError,
    SessionNotFoundError,
    StepGapError,
    StepNotHeldError,
    UnauthenticatedError,
    UnavailableError,
    from_message,
)
from recurra_client.opening import get_session
from recurra_client.replay import Replay
from recurra_client.step_stream import StepStream

MAX_UNANSWERED: Final = 1024
"""Steps kept to be sent again, when the server cannot be reached and the caller goes on."""

_NO_ANSWER: Final = (
    UnavailableError,
    DeadlineExceededError,
    UnauthenticatedError,
    ForbiddenError,
    ClientClosedError,
)
"""Nobody has looked at the step: it stays the first in line, and keeps its number."""


class Delivered(NamedTuple):
    """A step that was applied."""

    result: inference_pb2.StepResult
    latency: float
    """Seconds from the call to the answer."""


class _Step:
    """A step on its way: its message, and then what became of it. Without a message: a reset, to step 0."""

    __slots__ = ("asked", "outcome", "request")

    def __init__(self, request: inference_pb2.StreamStepsRequest | None) -> None:
        self.request = request
        self.asked = False  # its number was asked for, not counted
        self.outcome: inference_pb2.StepResult | RecurraError | None = None


class Delivery:
    """The steps of one session on their way.

    At most one message is under way at a time, as the server keeps only its last reply for a session: were there
    more, a broken connection could lose an output for good. A step that nobody waits for any more stays in line, and so
    does a reset: it is made again until it is known to be done, as the steps after it are numbered from 1.

    What a message on the stream says of a step is so of this attempt. Where the stream ended instead, with whatever
    status, nobody knows whether the step was applied: it is sent again. If that is refused, the refusal says nothing of
    the attempt before, so the server is asked how far the session is.

    Of a durable session, what is answered is kept until it is durable: a server that takes the session over says by a
    gap which step it expects, and gets the steps from there on again.
    """

    def __init__(
        self,
        connection: Connection,
        session_id: str,
        applied: int,
        *,
        outputs: Sequence[str] = (),
        route: str,
        durable: bool = False,
    ) -> None:
        self.session_id = session_id
        self._outputs = outputs
        self._route = route
        self._connection = connection
        self._applied = applied  # for certain
        self._sure = True  # that there are no more; else it must be asked
        self._line: deque[_Step] = deque()
        self._turn = asyncio.Lock()
        self._generating = False
        self._stream = StepStream(connection, route)
        self._replay = Replay() if durable else None

    @property
    def applied(self) -> int:
        """How many steps are known to be applied; 0 where the session is being reset."""
        return 0 if self._line and self._line[0].request is None else self._applied

    async def deliver(self, inputs: list[tensor_pb2.Tensor]) -> Delivered:
        """Apply one step or chunk, after all that stand in line before it.

        Raises:
            UnavailableError, DeadlineExceededError, UnauthenticatedError, ForbiddenError: No answer; it stays in line.
            CapacityError: Too many stand in line, or there is no room on the server; it is not applied, nor in line.
            StepNotHeldError: It was applied, perhaps in an attempt before, and its output is lost.
            RecurraError: The server refused it; it was not applied.
        """
        began = time.perf_counter()
        request = inference_pb2.StreamStepsRequest(session_id=self.session_id, inputs=inputs, outputs=self._outputs)
        return Delivered(await self._in_turn(_Step(request)), time.perf_counter() - began)

    async def reset(self) -> None:
        """Put the session back to its beginning, after all that stand in line before.

        Raises:
            SessionNotFoundError: It cannot be done.
            RecurraError: It may not be done yet; it stays in line.
        """
        await self._in_turn(_Step(None))

    async def _in_turn(self, step: _Step) -> inference_pb2.StepResult:
        if len(self._line) >= MAX_UNANSWERED:
            raise CapacityError(
                f"{MAX_UNANSWERED} steps of session {self.session_id} wait for an answer already",
                reason="CAPACITY",
                code=grpc.StatusCode.RESOURCE_EXHAUSTED,
                metadata={"bound": "unanswered_steps", "limit": str(MAX_UNANSWERED)},
            )
        self._line.append(step)
        await self._connection.in_time(self._answer(step))
        if isinstance(step.outcome, RecurraError):
            raise step.outcome
        return cast("inference_pb2.StepResult", step.outcome)

    @contextlib.asynccontextmanager
    async def standstill(self, *, after_all: bool = True, changes: bool = False) -> AsyncIterator[int]:
        """Hold the line during another call.

        Args:
            after_all: Have what stands in line applied before.
            changes: The call generates, which applies steps; `changed` tells how many, durably. Where it is not called,
                it is asked.

        Yields:
            `applied`, for the call to say. A server that lacks steps says so by a gap: see `bring`.

        Raises:
            DeadlineExceededError: Another call has not ended in time, such as a generation that nobody goes on with.
            RecurraError: What stands in line could not be applied.
        """
        async with contextlib.AsyncExitStack() as held:

            async def come_to_rest() -> None:
                await held.enter_async_context(self._have_turn())
                if after_all:
                    await self._answer_all()

            await self._connection.in_time(come_to_rest())
            if changes:
                self._sure = False
            self._generating = changes
            try:
                yield self.applied
            finally:
                self._generating = False

    @contextlib.asynccontextmanager
    async def _have_turn(self) -> AsyncIterator[None]:
        """Wait until no other call holds the line, and hold it."""
        try:
            await self._turn.acquire()
        except asyncio.CancelledError as cancelled:
            if self._generating:  # it takes as long as its caller: what was waited for, if this is a timeout
                cancelled.__cause__ = DeadlineExceededError(
                    f"session {self.session_id} is held by a generation that did not end in time: take all that it "
                    "yields, or close its iterator, before other calls",
                    reason="DEADLINE",
                    code=grpc.StatusCode.DEADLINE_EXCEEDED,
                )
            raise
        try:
            yield
        finally:
            self._turn.release()

    def changed(self, applied: int, *, surely: bool = True) -> None:
        """Another call has left the session with so many steps applied, or with a few more."""
        self._applied, self._sure = applied, surely
        if self._replay is not None:
            self._replay.clear()

    async def bring(self, gap: StepGapError) -> None:
        """Bring steps to a server that lacks them, in a standstill.

        A proxy may send a call to another server than the one that the stream is at, which stays where it began
        when servers come and go. That one then takes the session over as it was saved last.

        Raises:
            SessionLostError: It lacks more than is kept.
        """
        if self._replay is None:
            raise gap
        lacking = self._replay.since(gap)
        self._stream.leave()  # a new one goes where the call went
        with contextlib.suppress(StepNotHeldError):
            await self._connection.in_time(self._connection.persist(lambda: self._apply(lacking[-1])))

    async def end(self) -> None:
        """End the stream; the session stays open on the server."""
        await self._stream.end()

    async def _answer(self, step: _Step) -> None:
        async with self._have_turn():
            try:
                while step.outcome is None:
                    await self._answer_first()
            except CapacityError:
                if step.request is not None:  # those before it stay, as nobody waits for them who could send them again
                    self._line.remove(step)
                raise

    async def _answer_all(self) -> None:
        while self._line:
            await self._answer_first()

    async def _answer_first(self) -> None:
        """Find out what becomes of the first in line, which then leaves it.

        Raises:
            UnavailableError, DeadlineExceededError, UnauthenticatedError, ForbiddenError: Nobody knows.
            CapacityError: There is no room for now: it is not applied, and stays in line.
            RecurraError: It is a reset, and nobody knows.
        """
        step = self._line[0]
        try:
            if step.request is None:
                step.outcome = await self._have_reset()
            else:
                step.outcome = await self._have_applied(step, step.request)
        except _NO_ANSWER:
            raise
        except RecurraError as error:
            passes = isinstance(error, CapacityError) and error.retry_after is not None
            if passes or (step.request is None and not isinstance(error, SessionNotFoundError)):
                raise
            step.outcome = error
        self._line.popleft()

    async def _have_reset(self) -> inference_pb2.StepResult:
        request = sessions_pb2.ResetSessionRequest(session_id=self.session_id)
        await self._connection.call(self._connection.sessions.ResetSession, request, route=self._route)
        self.changed(0)  # surely: a generation that was left is not gone on with after a reset
        return inference_pb2.StepResult()

    async def _have_applied(self, step: _Step, request: inference_pb2.StreamStepsRequest) -> inference_pb2.StepResult:
        is_applied = is_again = False
        while True:
            if not request.step:
                # Numbered only now: had one before it failed, it would have left a gap.
                step.asked = not self._sure
                request.step = await self._next_number()
            try:
                result = await self._connection.persist(lambda: self._apply(request))
            except StepNotHeldError:
                # At its first attempt it was another's: a generation that was left early had a step under way still.
                is_anothers = step.asked and self._sure
                self._sure = False  # more is applied than was known
                if not is_anothers:
                    raise
                request.step = 0
            except _NO_ANSWER:
                raise
            except RecurraError as error:
                if is_applied:
                    raise self._not_held(request.step, error) from error
                if self._sure:
                    raise
                is_applied, step.asked = await self._is_applied(request.step), False
                if is_again and not is_applied:  # what is refused twice is a message that nobody takes
                    raise
                is_again = True
                await asyncio.sleep(error.retry_after or 0)
            else:
                self._applied, self._sure = result.step, True
                if self._replay is not None:
                    self._replay.add(request, request.ByteSize(), result.durable_step)
                return result

    async def _is_applied(self, number: int) -> bool:
        """Whether a step is applied that was sent and not answered."""
        try:
            return await self._next_number() > number
        except (*_NO_ANSWER, SessionNotFoundError):
            raise
        except RecurraError as error:
            raise UnavailableError(
                f"whether step {number} is applied cannot be asked: {error.message}",
                reason=error.reason,
                code=error.code,
                retry_after=error.retry_after,
            ) from error

    def _not_held(self, number: int, why: RecurraError) -> StepNotHeldError:
        return StepNotHeldError(
            f"step {number} is applied and its output is lost: its answer did not come, and now {why.message}",
            reason="STEP_NOT_HELD",
            code=why.code,
            metadata={"expected_step": str(self._applied + 1)},
        )

    async def _next_number(self) -> int:
        while not self._sure:
            # With what is known, as a server that has just taken the session over may not be that far.
            known, route = self._applied, self._route
            try:
                session = await get_session(self._connection, self.session_id, after_step=known, route=route)
            except StepGapError as gap:
                await self.bring(gap)
            else:
                self._applied, self._sure = session.steps, True
        return self._applied + 1

    async def _apply(self, request: inference_pb2.StreamStepsRequest) -> inference_pb2.StepResult:
        """Send one message; and before it, if the session was taken over, what was lost with the server before."""
        to_send = [request]
        while True:
            try:
                result = await self._exchange(to_send[0])
            except StepGapError as gap:
                if self._replay is None:
                    raise
                to_send = [*self._replay.since(gap), request]
                continue
            except StepNotHeldError:
                if len(to_send) == 1:
                    raise
                # of a replay: it has been applied again already
            to_send.pop(0)
            if not to_send:
                return result

    async def _exchange(self, request: inference_pb2.StreamStepsRequest) -> inference_pb2.StepResult:
        sure, self._sure = self._sure, False  # until it is answered, nobody knows whether it is applied
        reply = await self._stream.exchange(request)
        self._sure = sure
        if not reply.HasField("error"):
            return reply.result
        error = from_message(reply.error)
        if isinstance(error, UnavailableError):
            self._stream.leave()  # lest the next attempt meets a server again that cannot do it
        raise error
