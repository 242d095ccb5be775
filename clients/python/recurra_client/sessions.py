"""Sessions by their id, without stepping them: what an operator or a gateway needs."""

import secrets
from collections.abc import AsyncGenerator
from typing import Final

from recurra.v1 import sessions_pb2

from recurra_client.connection import Connection
from recurra_client.durability import DURABILITIES, Durability
from recurra_client.opening import fork_session, get_session, once

PAGE_SIZE: Final = 1000


class Sessions:
    """`client.sessions`: what can be done with a session by its id. Answers `recurra.v1.Session` messages."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(self, model: str = "", *, limit: int | None = None) -> AsyncGenerator[sessions_pb2.Session]:
        """Yield the open sessions, in the order they were opened.

        Args:
            model: Only those of this model. Empty: of all.
            limit: At most so many.
        """
        left = PAGE_SIZE if limit is None else limit
        request = sessions_pb2.ListSessionsRequest(model=model)
        while left > 0:
            request.page_size = min(left, PAGE_SIZE)
            answer = await self._connection.call(self._connection.sessions.ListSessions, request)
            for session in answer.sessions:
                yield session
            if limit is not None:
                left -= len(answer.sessions)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def count(self, model: str = "") -> int:
        """Number of open sessions, of one model or of all."""
        request = sessions_pb2.ListSessionsRequest(model=model, page_size=1)
        return (await self._connection.call(self._connection.sessions.ListSessions, request)).total

    async def get(self, session_id: str) -> sessions_pb2.Session:
        """How a session stands, after what is in flight of it; does not count as use.

        Raises:
            SessionNotFoundError, SessionExpiredError
        """
        return await get_session(self._connection, session_id)

    async def reset(self, session_id: str) -> sessions_pb2.Session:
        """Put a session back to its initial states and step number 0.

        Raises:
            SessionNotFoundError, SessionExpiredError
        """
        request = sessions_pb2.ResetSessionRequest(session_id=session_id)
        return (await self._connection.call(self._connection.sessions.ResetSession, request)).session

    async def close(self, session_id: str) -> sessions_pb2.Session:
        """Close a session; answers how it stood.

        Raises:
            SessionNotFoundError, SessionExpiredError
        """
        request = sessions_pb2.CloseSessionRequest(session_id=session_id)
        return (await self._connection.call(self._connection.sessions.CloseSession, request)).session

    async def fork(self, session_id: str, fork_session_id: str = "") -> sessions_pb2.Session:
        """Open a new session with the states and step number of another; an unguessable id is made if none is given.

        Raises:
            SessionNotFoundError, SessionExpiredError, SessionExistsError, CapacityError, DrainingError
        """
        return await fork_session(self._connection, session_id, fork_session_id)

    async def export(self, session_id: str) -> bytes:
        """Take a snapshot of a session, which is left as it is: for `import_` here or elsewhere, and for `rewind`.

        Raises:
            SessionNotFoundError, SessionExpiredError
        """
        request = sessions_pb2.ExportSessionRequest(session_id=session_id)
        return (await self._connection.call(self._connection.sessions.ExportSession, request)).snapshot

    async def import_(
        self,
        snapshot: bytes,
        session_id: str = "",
        *,
        idle_timeout: float | None = None,
        durability: Durability = "",
    ) -> sessions_pb2.Session:
        """Open a session that goes on where a snapshot was taken, on any server that has the same model.

        Args:
            snapshot: What `export` gave.
            session_id: Its id; an unguessable one is made if none is given.
            idle_timeout: Seconds it may go unused before it expires; None for the server's default.
            durability: As in `Client.session`.

        Raises:
            SnapshotError, ModelNotFoundError, SessionExistsError, CapacityError, DrainingError
        """
        request = sessions_pb2.ImportSessionRequest(
            snapshot=snapshot,
            # An id that is made here, too: then the call may be repeated, and a proxy knows where later ones go.
            session_id=session_id or secrets.token_hex(16),
            durability=DURABILITIES[durability],
        )
        if idle_timeout is not None:
            request.idle_timeout.FromNanoseconds(round(idle_timeout * 1e9))

        async def import_() -> sessions_pb2.Session:
            return (await self._connection.call(self._connection.sessions.ImportSession, request)).session

        return await once(self._connection, import_(), request.session_id, chosen=bool(session_id))

    async def rewind(self, session_id: str, snapshot: bytes) -> sessions_pb2.Session:
        """Put an open session back to where a snapshot was taken.

        Raises:
            SnapshotError, SessionNotFoundError, SessionExpiredError
        """
        request = sessions_pb2.RewindSessionRequest(session_id=session_id, snapshot=snapshot)
        return (await self._connection.call(self._connection.sessions.RewindSession, request)).session

    async def drain(self, *, grace: float | None = None) -> sessions_pb2.DrainSessionsResponse:
        """Empty the server before it is ended: durable sessions go on elsewhere, others end with it.

        Args:
            grace: Seconds that open streams may go on; None for as long as the server gives them on SIGTERM.
        """
        request = sessions_pb2.DrainSessionsRequest()
        if grace is not None:
            request.grace.FromNanoseconds(round(grace * 1e9))
        return await self._connection.call(self._connection.sessions.DrainSessions, request, repeatable=False)
