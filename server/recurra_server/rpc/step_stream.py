"""StreamSteps: steps as they come, of any number of sessions, over one stream."""

from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from recurra.v1 import inference_pb2, sessions_pb2

from recurra_server.driver import Driver
from recurra_server.engine.accounts import Account
from recurra_server.engine.errors import InvalidRequestError, SessionExpiredError, SessionNotFoundError
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.sessions import Session
from recurra_server.engine.steps import Step
from recurra_server.rpc.results import StreamResultTemplate, result_of
from recurra_server.rpc.sessions import describe, open_session
from recurra_server.rpc.status import to_engine_error, to_message
from recurra_server.rpc.stream_base import Stream
from recurra_server.rpc.tensors import decode_steps
from recurra_server.telemetry.metrics import EdgeCounts
from recurra_server.tracecontext import Trace

_Context = grpc.aio.ServicerContext[Any, Any]
_Response = inference_pb2.StreamStepsResponse


class StepStream(Stream):
    """One StreamSteps call. It waits for the plain steps itself: single ones, with nothing else in their message."""

    def __init__(
        self,
        driver: Driver,
        edge: EdgeCounts,
        templates: dict[ServedModel, StreamResultTemplate],
        context: _Context,
        window: int,
        caller: Account | None,
        *,
        max_sessions: int = 10_000,
    ) -> None:
        super().__init__(
            context, window=window, max_steps=driver.engine.limits.max_chunk_steps, max_sessions=max_sessions
        )
        self._driver = driver
        self._edge = edge
        self._templates = templates
        self._caller = caller
        self._session: Session | None = None  # of the message before

    def announce(self, grace: float) -> None:
        """Tell the caller that the server shuts down."""
        moving = inference_pb2.Moving()
        moving.grace.FromNanoseconds(round(grace * 1e9))
        self._unanswered += 1
        self.reply(_Response(moving=moving))

    # --- reading -------------------------------------------------------------------------

    def _accept(self, request: inference_pb2.StreamStepsRequest) -> Awaitable[None] | None:
        """Do what a message asks for, in its order; whatever fails becomes the message's answer.

        Returns:
            What has still to be awaited, where a session is opened, or perhaps has to be taken over.
        """
        if request.HasField("open"):
            return self._accept_opening(request)
        try:
            session = self._find(request.session_id)
        except (SessionNotFoundError, SessionExpiredError) as error:
            session_id, self._session = self._meant(request), None  # lest the next message goes to the one before
            if self._driver.checkpoints is not None:
                return self._accept_absent(request, session_id)
            self._refuse(error, session_id)
        except Exception as error:
            self._refuse(error, self._meant(request))
        else:
            self._do(request, session)
        return None

    async def _accept_opening(self, request: inference_pb2.StreamStepsRequest) -> None:
        session_id = self._meant(request)
        self._session = None  # should this fail, the next message must not go to the session before it
        try:
            if request.session_id:
                raise InvalidRequestError(
                    "session_id must be unset where a session is opened; name it in open.session_id", field="session_id"
                )
            self.opened.check_room()
            self._session = session = await open_session(self._driver, request.open, self._caller)
            self.opened.add(session)
        except Exception as error:
            self._refuse(error, session_id)
        else:
            self._do(request, session, describe(session, self._driver.clock()))

    async def _accept_absent(self, request: inference_pb2.StreamStepsRequest, session_id: str) -> None:
        try:
            self._session = session = await self._driver.find(session_id, self._caller)
        except Exception as error:
            self._refuse(error, session_id)
        else:
            self._do(request, session)

    def _do(
        self,
        request: inference_pb2.StreamStepsRequest,
        session: Session,
        opened: sessions_pb2.Session | None = None,
    ) -> None:
        """Step, close, or just tell that the session was opened."""
        try:
            if request.inputs:
                self._submit(request, session, opened)
            elif request.outputs:
                raise InvalidRequestError("outputs are asked for with a step, and there are no inputs", field="outputs")
            elif request.close:
                session.model.turns.at_rest(session, partial(self._close, session, opened))
            elif opened is not None:
                self.reply(_Response(session_id=opened.session_id, opened=opened))
            else:
                raise InvalidRequestError("the message neither opens, nor steps, nor closes a session", field="inputs")
        except Exception as error:
            self._refuse(error, session.id or "", opened)

    def _refuse(self, error: Exception, session_id: str, opened: sessions_pb2.Session | None = None) -> None:
        known = to_engine_error(error)
        self._edge.count_error(known)
        self.reply(_Response(session_id=session_id, opened=opened, error=to_message(known)))

    def _find(self, session_id: str) -> Session:
        session = self._session
        if not session_id:
            if session is None:
                raise InvalidRequestError(
                    "no message before this one named or opened a session: set session_id", field="session_id"
                )
            if not session.closed:
                return session
            session_id = session.id or ""  # find out how it ended
        self._session = self._driver.engine.session(session_id, self._driver.clock(), self._caller)
        return self._session

    def _meant(self, request: inference_pb2.StreamStepsRequest) -> str:
        """The id of the session that a message is about."""
        before = "" if self._session is None else self._session.id or ""
        named = request.open.session_id if request.HasField("open") else request.session_id or before
        return named[:128]

    def _submit(
        self, request: inference_pb2.StreamStepsRequest, session: Session, opened: sessions_pb2.Session | None
    ) -> None:
        driver = self._driver
        inputs, count, chunk = decode_steps(
            request.inputs, session.model.signature, driver.engine.limits.max_chunk_steps
        )
        choice = session.model.choose(request.outputs) if request.outputs else None
        plain = not (chunk or opened or request.close or choice)
        waiter = self if plain else _Message(self, driver, opened, chunk=chunk, close=request.close)
        step = Step(session, inputs, count, waiter, driver.clock(), number=request.step, choice=choice)
        driver.submit(step)
        self._unanswered_steps += count
        session.owner.charge(count, step.arrived)

    def _close(self, session: Session, opened: sessions_pb2.Session | None) -> None:
        """Called by the engine once the session is at rest, or has ended."""
        response = _Response(session_id=session.id or "", opened=opened)
        if session.closed:
            response.error.CopyFrom(to_message(session.ending()))
            self.reply(response)
        else:
            response.closed.CopyFrom(describe(session, self._driver.clock()))
            self.reply(response)  # before whatever waits behind it is told that the session has ended
            self._driver.engine.close(session)

    # --- writing -------------------------------------------------------------------------

    def answered(self, step: Step) -> None:
        """Called by the engine: a plain step is done."""
        self._writer.put(self._render, step, 1)

    def reply(self, response: _Response, steps: int = 0) -> None:
        """Answer a message that held so many time steps."""
        self._writer.put(_as_it_is, response, steps)

    def response_to(self, step: Step, *, chunk: bool) -> _Response:
        """The answer to a step or chunk."""
        response = _Response(session_id=step.session.id or "")
        if step.error is not None:
            self._edge.count_error(step.error)
            response.error.CopyFrom(to_message(step.error))
        else:
            response.result.CopyFrom(result_of(step, chunk=chunk))
        return response

    def _render(self, step: Step) -> _Response:
        if step.error is not None or step.replayed:
            return self.response_to(step, chunk=False)
        model = step.session.model
        template = self._templates.get(model)
        if template is None or template.room < 0:
            template = self._templates[model] = StreamResultTemplate(model)
        return template.fill(step)


@dataclass(slots=True)
class _Message:
    """Waits for a step whose message held more: an opening, a chunk, a closing, names of outputs."""

    stream: StepStream
    driver: Driver
    opened: sessions_pb2.Session | None
    chunk: bool
    close: bool

    @property
    def gone(self) -> bool:
        """Whether the call is over."""
        return self.stream.gone

    @property
    def trace(self) -> Trace | None:
        """What the call is part of."""
        return self.stream.trace

    def answered(self, step: Step) -> None:
        """Called by the engine: close the session, unless its step failed, and answer the whole message."""
        response = self.stream.response_to(step, chunk=self.chunk)
        if self.opened is not None:
            response.opened.CopyFrom(self.opened)
        close = self.close and step.error is None
        if close:
            response.closed.CopyFrom(describe(step.session, self.driver.clock()))
        self.stream.reply(response, step.count)
        if close:
            self.driver.engine.close(step.session)


def _as_it_is(response: _Response) -> _Response:
    return response
