"""Having one message of a session after the other applied exactly once, whatever the connection does."""

import asyncio
import contextlib
from typing import Final

from recurra.v1 import inference_pb2, sessions_pb2

from recurra_client.connection import Connection
from recurra_client.errors import (
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

NO_ANSWER: Final = (
    UnavailableError,
    DeadlineExceededError,
    UnauthenticatedError,
    ForbiddenError,
    ClientClosedError,
)
"""Nobody has looked at the message, or nobody knows."""


class ExactlyOnce:
    """Numbers the messages of one session and sends them again until it is known what became of them.

    What a message on the stream says of a step is so of this attempt. Where the stream ended instead, with whatever
    status, nobody knows whether the step was applied: it is sent again. If that is refused, the refusal says nothing of
    the attempt before, so the server is asked how far the session is.

    Of a durable session, what is answered is kept until it is durable: a server that takes the session over says by a
    gap which step it expects, and gets the steps from there on again.

    Attributes:
        applied: How many steps are applied for certain.
        sure: That there are no more; else it is asked before the next one gets a number.
    """

    def __init__(self, connection: Connection, session_id: str, applied: int, *, route: str, durable: bool) -> None:
        self.applied = applied
        self.sure = True
        self._session_id = session_id
        self._route = route
        self._connection = connection
        self._stream = StepStream(connection, route)
        self._replay = Replay() if durable else None

    async def apply(self, request: inference_pb2.StreamStepsRequest) -> inference_pb2.StepResult:
        """Apply a step or chunk. It is numbered here; one that has a number was sent before.

        Raises:
            UnavailableError, DeadlineExceededError, UnauthenticatedError, ForbiddenError: Nobody knows; call it again.
            StepNotHeldError: It is applied and its output is lost, or somebody else's has its number.
            RecurraError: The server refused it; it is not applied.
        """
        is_asked = is_applied = is_again = False
        while True:
            if not request.step:
                # Numbered only now: had one before it failed, it would have left a gap.
                is_asked = not self.sure
                request.step = await self._next_number()
            try:
                result = await self._connection.persist(lambda: self._apply(request))
            except StepNotHeldError:
                # At its first attempt it was another's: a generation that was left early had a step under way still.
                is_anothers = is_asked and self.sure
                self.sure = False  # more is applied than was known
                if not is_anothers:
                    raise
                request.step = 0
            except NO_ANSWER:
                raise
            except RecurraError as error:
                if is_applied:
                    raise self._not_held(request.step, error) from error
                if self.sure:
                    raise
                is_applied, is_asked = await self._next_number() > request.step, False
                if is_again and not is_applied:  # what is refused twice is a message that nobody takes
                    raise
                is_again = True
                await asyncio.sleep(error.retry_after or 0)
            else:
                self.applied, self.sure = result.step, True
                if self._replay is not None:
                    self._replay.add(request, request.ByteSize(), result.durable_step)
                return result

    async def reset(self) -> inference_pb2.StepResult:
        """Put the session back to its beginning.

        Raises:
            RecurraError: It is not known to be done: call it again, unless the session is gone.
        """
        request = sessions_pb2.ResetSessionRequest(session_id=self._session_id)
        await self._connection.call(self._connection.sessions.ResetSession, request, route=self._route)
        self.changed(0)  # surely: a generation that was left is not gone on with after a reset
        return inference_pb2.StepResult()

    def changed(self, applied: int, *, surely: bool = True) -> None:
        """Another call has left the session with so many steps applied, or with a few more."""
        self.applied, self.sure = applied, surely
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

    # --- inside --------------------------------------------------------------------------

    def _not_held(self, number: int, why: RecurraError) -> StepNotHeldError:
        return StepNotHeldError(
            f"step {number} is applied and its output is lost: its answer did not come, and now {why.message}",
            reason="STEP_NOT_HELD",
            code=why.code,
            metadata={"expected_step": str(self.applied + 1)},
        )

    async def _next_number(self) -> int:
        """The number of the next step; the server is asked where it is not known.

        Raises:
            SessionNotFoundError, StepGapError: There will be none.
            UnavailableError, DeadlineExceededError, UnauthenticatedError, ForbiddenError: Nobody knows.
        """
        while not self.sure:
            try:
                await self._ask()
            except (*NO_ANSWER, SessionNotFoundError, StepGapError):
                raise
            except RecurraError as error:  # it is about the question, not about a step
                raise UnavailableError(
                    f"how far session {self._session_id} is cannot be asked: {error.message}",
                    reason=error.reason,
                    code=error.code,
                    retry_after=error.retry_after,
                ) from error
        return self.applied + 1

    async def _ask(self) -> None:
        # With what is known, as a server that has just taken the session over may not be that far.
        known, route = self.applied, self._route
        try:
            session = await get_session(self._connection, self._session_id, after_step=known, route=route)
        except StepGapError as gap:
            await self.bring(gap)
        else:
            self.applied, self.sure = session.steps, True

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
        sure, self.sure = self.sure, False  # until it is answered, nobody knows whether it is applied
        reply = await self._stream.exchange(request)
        error = from_message(reply.error) if reply.HasField("error") else None
        if not isinstance(error, NO_ANSWER):
            self.sure = sure
        if error is None:
            return reply.result
        if isinstance(error, UnavailableError):
            self._stream.leave()  # lest the next attempt meets a server again that cannot do it
        raise error
