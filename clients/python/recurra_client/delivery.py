"""The line of a session's steps: in which order they are applied, and who waits for which."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple, cast

import grpc
from recurra.v1 import inference_pb2, tensor_pb2

from recurra_client.connection import Connection
from recurra_client.errors import CapacityError, DeadlineExceededError, RecurraError, SessionNotFoundError
from recurra_client.exactly_once import NO_ANSWER, ExactlyOnce

MAX_UNANSWERED: Final = 1024
"""Steps kept to be sent again, when the server cannot be reached and the caller goes on."""


class Delivered(NamedTuple):
    """A step that was applied."""

    result: inference_pb2.StepResult
    latency: float
    """Seconds from the call to the answer."""


class _Step:
    """A step on its way: its message, and then what became of it. Without a message: a reset, to step 0."""

    __slots__ = ("outcome", "request")

    def __init__(self, request: inference_pb2.StreamStepsRequest | None) -> None:
        self.request = request
        self.outcome: inference_pb2.StepResult | RecurraError | None = None


class Delivery:
    """The steps of one session on their way.

    At most one message is under way at a time, as the server keeps only its last reply for a session: were there
    more, a broken connection could lose an output for good. A step that nobody waits for any more stays in line, and so
    does a reset: it is made again until it is known to be done, as the steps after it are numbered from 1.

    Attributes:
        once: Has the first in line applied.
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
        self.once = ExactlyOnce(connection, session_id, applied, route=route, durable=durable)
        self._outputs = outputs
        self._connection = connection
        self._line: deque[_Step] = deque()
        self._turn = asyncio.Lock()
        self._generating = False

    @property
    def applied(self) -> int:
        """How many steps are known to be applied; 0 where the session is being reset."""
        return 0 if self._line and self._line[0].request is None else self.once.applied

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
            changes: The call generates, which applies steps; `once.changed` tells how many, durably. Where it is not
                called, it is asked.

        Yields:
            `applied`, for the call to say. A server that lacks steps says so by a gap: see `once.bring`.

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
                self.once.sure = False
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

    async def _answer(self, step: _Step) -> None:
        async with self._have_turn():
            try:
                while step.outcome is None:
                    await self._answer_first()
            except RecurraError as error:
                # What is told of one before it is told as of this one: it is not applied, unless it stays. Those before
                # it stay, as nobody waits for them who could send them again.
                if step.request is not None and not isinstance(error, NO_ANSWER):
                    self._line.remove(step)
                raise

    async def _answer_all(self) -> None:
        while self._line:
            await self._answer_first()

    async def _answer_first(self) -> None:
        """Find out what becomes of the first in line, which then leaves it.

        Raises:
            UnavailableError, DeadlineExceededError, UnauthenticatedError, ForbiddenError: Nobody knows; it stays.
            CapacityError: There is no room for now: it is not applied, and stays.
            RecurraError: It is a reset, and nobody knows; it stays.
        """
        step = self._line[0]
        try:
            if step.request is None:
                step.outcome = await self.once.reset()
            else:
                step.outcome = await self.once.apply(step.request)
        except NO_ANSWER:
            raise
        except RecurraError as error:
            passes = isinstance(error, CapacityError) and error.retry_after is not None
            if passes or (step.request is None and not isinstance(error, SessionNotFoundError)):
                raise
            step.outcome = error
        self._line.popleft()
