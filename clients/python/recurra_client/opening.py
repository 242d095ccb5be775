"""Calls that bring a session about, or find it: each made once, however often it has to be repeated."""

import secrets
from collections.abc import Awaitable

from recurra.v1 import sessions_pb2

from recurra_client.connection import Connection
from recurra_client.errors import SessionExistsError


async def get_session(
    connection: Connection, session_id: str, *, after_step: int = 0, route: str = ""
) -> sessions_pb2.Session:
    """How a session stands; SessionNotFoundError if it is gone."""
    request = sessions_pb2.GetSessionRequest(session_id=session_id, after_step=after_step)
    return (await connection.call(connection.sessions.GetSession, request, route=route)).session


async def fork_session(
    connection: Connection, session_id: str, fork_session_id: str, *, after_step: int = 0, route: str = ""
) -> sessions_pb2.Session:
    """Open a copy of a session; an unguessable id is made if none is given."""
    request = sessions_pb2.ForkSessionRequest(
        session_id=session_id, fork_session_id=fork_session_id or secrets.token_hex(16), after_step=after_step
    )

    async def fork() -> sessions_pb2.Session:
        return (await connection.call(connection.sessions.ForkSession, request, route=route)).session

    return await once(connection, fork(), request.fork_session_id, chosen=bool(fork_session_id), route=route)


async def once(
    connection: Connection,
    opening: Awaitable[sessions_pb2.Session],
    session_id: str,
    *,
    chosen: bool,
    route: str = "",
) -> sessions_pb2.Session:
    """The session that a call opens, however often it had to be repeated.

    Args:
        connection: Where.
        opening: The call.
        session_id: The id it gives.
        chosen: Whether somebody chose the id, so that somebody else's session may have it.
        route: As in `Connection.call`.

    Raises:
        SessionExistsError: There is one of this id already.
        RecurraError: Whatever else the call raised.
    """
    try:
        return await opening
    except SessionExistsError:
        if chosen:
            raise
        # Nobody else can have made this id: the answer to the first attempt was lost.
        return await get_session(connection, session_id, route=route)
