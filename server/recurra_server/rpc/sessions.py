"""SessionsService: opening, looking at and ending sessions."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from recurra.v1 import sessions_pb2, sessions_pb2_grpc

from recurra_server.driver import Driver
from recurra_server.engine import snapshots
from recurra_server.engine.accounts import Account
from recurra_server.engine.durability import Durability
from recurra_server.engine.errors import InvalidRequestError
from recurra_server.engine.sessions import Session
from recurra_server.engine.standing import Standing
from recurra_server.rpc.durations import read_seconds
from recurra_server.rpc.results import durable_step
from recurra_server.rpc.status import guarded
from recurra_server.rpc.tensors import decode_states
from recurra_server.security.identity import caller_account
from recurra_server.telemetry.metrics import EdgeCounts

_Context = grpc.aio.ServicerContext[Any, Any]
_DEFAULT_PAGE = 100
_MAX_PAGE = 1000
_MAX_GRACE = 86_400.0  # seconds
_DURABILITIES = {
    Durability.EPHEMERAL: sessions_pb2.DURABILITY_EPHEMERAL,
    Durability.ASYNC: sessions_pb2.DURABILITY_ASYNC,
    Durability.SYNC: sessions_pb2.DURABILITY_SYNC,
}
Drain = Callable[[float | None], Awaitable[tuple[int, int]]]
_PAGE_TOKEN = re.compile(r"[0-9]{0,12}")


async def open_session(driver: Driver, request: sessions_pb2.OpenSessionRequest, caller: Account | None) -> Session:
    """Open the session that a request asks for; one that is durable is then in the store.

    Raises:
        EngineError: Nothing was opened.
    """
    model = driver.engine.model(request.model, request.version)
    states = decode_states(request.initial_states, model.signature.kept) if request.initial_states else {}
    return await _open(
        driver,
        Standing.beginning(model, states),
        _durability(driver, request),
        session_id=request.session_id,
        idle_timeout=read_seconds(request, "idle_timeout"),
        caller=caller,
    )


async def _open(
    driver: Driver,
    standing: Standing,
    durability: Durability,
    *,
    session_id: str,
    idle_timeout: float | None,
    caller: Account | None,
) -> Session:
    """Open a session that goes on from there.

    Raises:
        EngineError: Nothing was opened; see `Engine.open` and `Checkpoints.open`.
    """
    if driver.checkpoints is None or durability is Durability.EPHEMERAL:
        return driver.engine.go_on(
            standing, driver.clock(), session_id=session_id, idle_timeout=idle_timeout, caller=caller
        )
    return await driver.checkpoints.open(
        standing, session_id=session_id, idle_timeout=idle_timeout, durability=durability, caller=caller
    )


def describe(session: Session, now: float) -> sessions_pb2.Session:
    """Tell how a session stands."""
    model, slot = session.model, session.slot
    message = sessions_pb2.Session(
        session_id=session.id or "",
        model=model.name,
        version=model.version,
        steps=session.applied,
        model_digest=model.digest,
        durability=_DURABILITIES[_durability_of(session)],
        durable_step=durable_step(session),
    )
    message.idle_timeout.FromNanoseconds(round(float(model.slots.idle_timeout[slot]) * 1e9))
    message.idle.FromNanoseconds(round(max(0.0, now - float(model.slots.last_used[slot])) * 1e9))
    return message


def _durability_of(session: Session) -> Durability:
    return Durability.EPHEMERAL if session.durable is None else session.durable.durability


def _durability(
    driver: Driver, request: sessions_pb2.OpenSessionRequest | sessions_pb2.ImportSessionRequest
) -> Durability:
    """What a new session is to be.

    Raises:
        InvalidRequestError: It needs a store, and there is none.
    """
    if not request.durability:
        return Durability.EPHEMERAL if driver.checkpoints is None else Durability.ASYNC
    try:
        durability = Durability(request.durability)
    except ValueError:
        raise InvalidRequestError(f"there is no durability {request.durability}", field="durability") from None
    if durability is not Durability.EPHEMERAL and driver.checkpoints is None:
        raise InvalidRequestError(
            f"durability {durability.name} needs a store, and the server has none: start it with --store, "
            "or leave durability unset",
            field="durability",
        )
    return durability


class SessionsServicer(sessions_pb2_grpc.SessionsServiceServicer):
    """Sessions, one call each.

    Args:
        driver: Runs them.
        edge: Counts calls that fail.
        drain: Empties the server, in so many seconds: the numbers of sessions that can go on elsewhere, and of others.
            None where a call reaches only a part of it.
    """

    def __init__(self, driver: Driver, edge: EdgeCounts, drain: Drain | None) -> None:
        self.edge = edge
        self._drain = drain
        self._driver = driver
        self._engine = driver.engine

    @guarded
    async def OpenSession(
        self, request: sessions_pb2.OpenSessionRequest, context: _Context
    ) -> sessions_pb2.OpenSessionResponse:
        """Begin a sequence."""
        session = await open_session(self._driver, request, caller_account())
        return sessions_pb2.OpenSessionResponse(session=describe(session, self._driver.clock()))

    @guarded
    async def GetSession(
        self, request: sessions_pb2.GetSessionRequest, context: _Context
    ) -> sessions_pb2.GetSessionResponse:
        """Tell how a session stands, when that is known: a step in flight may come to be applied or not."""
        session = await self._find(request)
        return sessions_pb2.GetSessionResponse(session=describe(session, self._driver.clock()))

    @guarded
    async def ListSessions(
        self, request: sessions_pb2.ListSessionsRequest, context: _Context
    ) -> sessions_pb2.ListSessionsResponse:
        """List open sessions page by page; the page token is the position in the order of opening."""
        if not _PAGE_TOKEN.fullmatch(request.page_token):
            raise InvalidRequestError("page_token must be the next_page_token of an earlier answer", field="page_token")
        start = int(request.page_token or 0)
        size = min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        sessions, total = self._engine.sessions(request.model, start, size, caller_account())
        now = self._driver.clock()
        following = start + len(sessions)
        return sessions_pb2.ListSessionsResponse(
            sessions=[describe(session, now) for session in sessions],
            next_page_token=str(following) if following < total and sessions else "",
            total=total,
        )

    @guarded
    async def ResetSession(
        self, request: sessions_pb2.ResetSessionRequest, context: _Context
    ) -> sessions_pb2.ResetSessionResponse:
        """Put a session back to its beginning."""
        return sessions_pb2.ResetSessionResponse(session=await self._go_back(request, self._engine.reset))

    @guarded
    async def CloseSession(
        self, request: sessions_pb2.CloseSessionRequest, context: _Context
    ) -> sessions_pb2.CloseSessionResponse:
        """End a session."""
        session = await self._driver.find(request.session_id, caller_account())
        before = describe(session, self._driver.clock())
        self._engine.close(session)
        if self._driver.checkpoints is not None:  # so that its id is free, wherever it is opened next
            await self._driver.checkpoints.deleted(session)
        return sessions_pb2.CloseSessionResponse(session=before)

    @guarded
    async def ForkSession(
        self, request: sessions_pb2.ForkSessionRequest, context: _Context
    ) -> sessions_pb2.ForkSessionResponse:
        """Open a copy of a session."""
        session = await self._find(request)

        def take() -> tuple[Standing, float]:
            standing = Standing.take(session, self._driver.clock())
            return standing, float(session.model.slots.idle_timeout[session.slot])

        standing, idle_timeout = await self._driver.at_rest(session, take)
        copy = await _open(
            self._driver,
            standing,
            _durability_of(session),
            session_id=request.fork_session_id,
            idle_timeout=idle_timeout,
            caller=session.owner,
        )
        return sessions_pb2.ForkSessionResponse(session=describe(copy, self._driver.clock()))

    @guarded
    async def ExportSession(
        self, request: sessions_pb2.ExportSessionRequest, context: _Context
    ) -> sessions_pb2.ExportSessionResponse:
        """Take a snapshot of a session."""
        session = await self._find(request)

        def export() -> sessions_pb2.ExportSessionResponse:
            now = self._driver.clock()
            snapshot = snapshots.take(session, now)
            return sessions_pb2.ExportSessionResponse(snapshot=snapshot, session=describe(session, now))

        return await self._driver.at_rest(session, export)

    @guarded
    async def ImportSession(
        self, request: sessions_pb2.ImportSessionRequest, context: _Context
    ) -> sessions_pb2.ImportSessionResponse:
        """Open a session that goes on where a snapshot was taken."""
        session = await _open(
            self._driver,
            snapshots.read(self._engine, request.snapshot),
            _durability(self._driver, request),
            session_id=request.session_id,
            idle_timeout=read_seconds(request, "idle_timeout"),
            caller=caller_account(),
        )
        return sessions_pb2.ImportSessionResponse(session=describe(session, self._driver.clock()))

    @guarded
    async def RewindSession(
        self, request: sessions_pb2.RewindSessionRequest, context: _Context
    ) -> sessions_pb2.RewindSessionResponse:
        """Put a session back to where a snapshot was taken."""
        then = await self._go_back(request, lambda session, now: snapshots.rewind(session, request.snapshot, now))
        return sessions_pb2.RewindSessionResponse(session=then)

    @guarded
    async def DrainSessions(
        self, request: sessions_pb2.DrainSessionsRequest, context: _Context
    ) -> sessions_pb2.DrainSessionsResponse:
        """Empty the server before it is ended."""
        grace = read_seconds(request, "grace")
        if grace is not None and not 0 <= grace <= _MAX_GRACE:
            raise InvalidRequestError(f"grace must be 0 to {_MAX_GRACE:g} s, not {grace:g} s", field="grace")
        if self._drain is None:
            raise InvalidRequestError(
                "this server has several processes, and a call reaches one of them: SIGTERM drains all and ends them"
            )
        moved, left = await self._drain(grace)
        return sessions_pb2.DrainSessionsResponse(moved=moved, left=left)

    async def _find(
        self,
        request: sessions_pb2.GetSessionRequest | sessions_pb2.ForkSessionRequest | sessions_pb2.ExportSessionRequest,
    ) -> Session:
        """A session with all steps that the caller knows of, and with those in flight, whose caller may not know."""
        session = await self._driver.find(request.session_id, caller_account())
        await self._driver.has_applied(session, request.after_step)
        return session

    async def _go_back(
        self,
        request: sessions_pb2.ResetSessionRequest | sessions_pb2.RewindSessionRequest,
        change: Callable[[Session, float], None],
    ) -> sessions_pb2.Session:
        """Have a session at rest count its steps anew, by a change that is given the time; it is durable then."""
        session = await self._driver.find(request.session_id, caller_account())

        def act() -> sessions_pb2.Session:
            now = self._driver.clock()
            change(session, now)
            return describe(session, now)

        then = await self._driver.at_rest(session, act)
        await self._driver.saved(session)  # else a take-over could undo it
        then.durable_step = then.steps if session.durable is not None else 0
        return then
