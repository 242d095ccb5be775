"""StreamSteps: steps as they come, of any number of sessions, over one stream.

A task reads and submits; what the engine answers is written at once. A failed message is
answered with an error and the stream goes on. A caller who sends faster than it reads is made
to wait: the reader stops at a bound of unanswered messages.
"""

import asyncio
from functools import partial
from typing import Any

import grpc
from recurra.v1 import inference_pb2, sessions_pb2

from recurra_server.driver import Driver
from recurra_server.engine.errors import DrainingError, InvalidRequestError
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.sessions import Session
from recurra_server.engine.steps import Step
from recurra_server.rpc.results import StreamResultTemplate, result_of
from recurra_server.rpc.sessions import describe, open_session
from recurra_server.rpc.status import abort, to_engine_error, to_message
from recurra_server.rpc.tensors import decode_steps
from recurra_server.rpc.writer import EagerWriter
from recurra_server.telemetry.metrics import EdgeCounts

_Context = grpc.aio.ServicerContext[Any, Any]
_Response = inference_pb2.StreamStepsResponse


class StepStream:
    """One StreamSteps call."""

    def __init__(
        self,
        driver: Driver,
        edge: EdgeCounts,
        templates: dict[ServedModel, StreamResultTemplate],
        context: _Context,
        window: int,
    ) -> None:
        self._driver = driver
        self._edge = edge
        self._templates = templates
        self._context = context
        self._window = window  # messages read and not yet answered
        self._steps: set[Step] = set()
        self._unanswered = 0
        self._session: Session | None = None  # of the message before
        self._writer = EagerWriter(context.write, self._written, self._fail)
        self._room = asyncio.Event()
        self._all_read = self._expelled = False
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Serve the stream until the caller has sent and received all."""
        reader = asyncio.ensure_future(self._read())
        try:
            await self._finished
        finally:
            self._writer.close()
            for step in self._steps:
                step.cancel()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        if self._expelled:
            await abort(self._context, DrainingError("the server shuts down; go on elsewhere", retry_after=0.1))

    def announce(self, grace: float) -> None:
        """Tell the caller that the server shuts down."""
        moving = inference_pb2.Moving()
        moving.grace.FromNanoseconds(round(grace * 1e9))
        self._unanswered += 1
        self._writer.put(lambda: _Response(moving=moving))

    def expel(self) -> None:
        """Read no more, answer what was read, and end the stream with DRAINING."""
        self._expelled = self._all_read = True
        self._check_finished()

    # --- reading -------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while not self._all_read and (request := await self._context.read()) is not grpc.aio.EOF:
                self._unanswered += 1
                self._accept(request)
                while self._unanswered >= self._window:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:
            self._fail(error)
        self._all_read = True
        self._check_finished()

    def _accept(self, request: inference_pb2.StreamStepsRequest) -> None:
        """Do what a message asks for, in its order; whatever fails becomes the message's answer."""
        opened: sessions_pb2.Session | None = None
        session_id = request.session_id
        try:
            if request.HasField("open"):
                if session_id:
                    raise InvalidRequestError(
                        "session_id must be unset where a session is opened; name it in open.session_id",
                        field="session_id",
                    )
                session = self._session = open_session(self._driver, request.open)
                opened = describe(session, self._driver.clock())
            else:
                session = self._find(session_id)
            session_id = session.id or ""
            if request.inputs:
                self._submit(request, session, opened)
            elif request.close:
                session.model.turns.at_rest(session, partial(self._close, session, opened))
            elif opened is not None:
                self._writer.put(partial(_Response, session_id=session_id, opened=opened))
            else:
                raise InvalidRequestError("the message neither opens, nor steps, nor closes a session", field="inputs")
        except Exception as error:
            self._refuse(error, session_id, opened)

    def _find(self, session_id: str) -> Session:
        if session_id:
            self._session = self._driver.engine.session(session_id, self._driver.clock())
        elif self._session is None:
            raise InvalidRequestError("the first message of a stream must name or open a session", field="session_id")
        elif self._session.closed:  # find out how it ended
            self._session = self._driver.engine.session(self._session.id or "", self._driver.clock())
        return self._session

    def _submit(
        self, request: inference_pb2.StreamStepsRequest, session: Session, opened: sessions_pb2.Session | None
    ) -> None:
        inputs, count, chunk = decode_steps(
            request.inputs, session.model.signature, self._driver.engine.limits.max_chunk_steps
        )
        plain = not (chunk or opened or request.close)
        step = Step(
            session,
            inputs,
            count,
            arrived=self._driver.clock(),
            number=request.step,
            done=self._answer if plain else partial(self._answer_with, opened, chunk, request.close),
        )
        self._steps.add(step)
        try:
            self._driver.submit(step)
        except Exception:
            self._steps.discard(step)
            raise
        if request.close:
            session.model.turns.at_rest(session, partial(self._close, session, opened, step, chunk))

    # --- answering -----------------------------------------------------------------------

    def _answer(self, step: Step) -> None:
        """Called by the engine: a plain step is done."""
        self._steps.discard(step)
        self._writer.put(partial(self._render, step))

    def _answer_with(self, opened: sessions_pb2.Session | None, chunk: bool, close: bool, step: Step) -> None:
        """Called by the engine: a chunk, or a step whose message also opened or closes, is done."""
        self._steps.discard(step)
        if not close:  # else it is answered once the session is closed
            self._writer.put(partial(self._respond, step, chunk, opened))

    def _close(
        self, session: Session, opened: sessions_pb2.Session | None, step: Step | None = None, chunk: bool = False
    ) -> None:
        """Called by the engine once the session is at rest: close it, unless its step failed, and answer."""
        response = _Response(session_id=session.id or "", opened=opened)
        if step is not None and not step.cancelled:
            response = self._respond(step, chunk, opened)
        if not session.closed and (step is None or step.error is None):
            response.closed.CopyFrom(describe(session, self._driver.clock()))
            self._driver.engine.close(session)
        self._writer.put(lambda: response)

    def _respond(self, step: Step, chunk: bool, opened: sessions_pb2.Session | None) -> _Response:
        response = _Response(session_id=step.session.id or "", opened=opened)
        if step.error is not None:
            self._edge.count_error(step.error.reason)
            response.error.CopyFrom(to_message(step.error))
        else:
            response.result.CopyFrom(result_of(step, chunk=chunk))
        return response

    def _refuse(self, error: Exception, session_id: str, opened: sessions_pb2.Session | None) -> None:
        known = to_engine_error(error)
        self._edge.count_error(known.reason)
        response = _Response(session_id=session_id, opened=opened, error=to_message(known))
        self._writer.put(lambda: response)

    # --- writing -------------------------------------------------------------------------

    def _render(self, step: Step) -> _Response:
        """The response to a plain step."""
        if step.error is not None or step.replayed:
            return self._respond(step, False, None)
        model = step.session.model
        template = self._templates.get(model)
        if template is None:
            template = self._templates[model] = StreamResultTemplate(model)
        return template.fill(step)

    def _written(self) -> None:
        """A response was sent."""
        self._unanswered -= 1
        self._room.set()
        self._check_finished()

    def _check_finished(self) -> None:
        if self._all_read and not self._unanswered and not self._finished.done():
            self._finished.set_result(None)

    def _fail(self, error: BaseException) -> None:
        """The connection is gone, or a bug: either ends the stream."""
        if not self._finished.done():
            self._finished.set_exception(error)
