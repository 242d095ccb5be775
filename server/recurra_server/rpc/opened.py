"""The sessions that were opened on one stream, of which only so many may be open."""

from recurra_server.engine.errors import CapacityError
from recurra_server.engine.sessions import Session

_FEW = 64


class Opened:
    """Those of one stream; that they were closed is seen when they are counted.

    Args:
        most: How many may be open.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._sessions: list[Session] = []  # and perhaps not closed yet
        self._count_at = _FEW

    def check_room(self) -> None:
        """Whether one more may be opened.

        Raises:
            CapacityError: It may not.
        """
        if len(self._sessions) >= self._most and self._count() >= self._most:
            raise CapacityError(
                f"all {self._most} sessions that one stream may open are in use; close some, or use another",
                retry_after=1.0,
                bound="max_sessions_per_stream",
                limit=self._most,
            )

    def add(self, session: Session) -> None:
        """One was opened."""
        if len(self._sessions) >= self._count_at:
            self._count()
        self._sessions.append(session)

    def _count(self) -> int:
        """How many are open; the others are forgotten."""
        self._sessions = [session for session in self._sessions if not session.closed]
        self._count_at = max(_FEW, 2 * len(self._sessions))
        return len(self._sessions)
