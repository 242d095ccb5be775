"""Tombstones: what is remembered for a while of sessions that have expired, so that their callers are told."""

from collections import OrderedDict
from dataclasses import dataclass

from recurra_server.engine.errors import SessionExpiredError
from recurra_server.engine.limits import Limits


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What is remembered of an expired session; both times in seconds."""

    expired_at: float
    idle_timeout: float


class Tombstones:
    """The tombstones by key, the oldest first; at most `max_tombstones`, each for `tombstone_seconds`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._of: OrderedDict[str, Tombstone] = OrderedDict()

    def put(self, key: str, tombstone: Tombstone) -> None:
        """Remember an expired session."""
        self._of[key] = tombstone
        if len(self._of) > self._limits.max_tombstones:
            self._of.popitem(last=False)

    def forget(self, key: str) -> None:
        """There is a session of this key again."""
        self._of.pop(key, None)

    def forget_old(self, now: float) -> None:
        """Forget those whose time is up."""
        oldest = now - self._limits.tombstone_seconds
        while self._of and next(iter(self._of.values())).expired_at < oldest:
            self._of.popitem(last=False)

    def error(self, key: str, session_id: str, now: float) -> SessionExpiredError | None:
        """What to tell whoever asks for a session; None where nothing is remembered of it."""
        tombstone = self._of.get(key)
        if tombstone is None or now - tombstone.expired_at > self._limits.tombstone_seconds:
            return None
        ago = now - tombstone.expired_at
        return SessionExpiredError(
            f"session {session_id!r} expired {ago:.1f} s ago, after {tombstone.idle_timeout:g} s without a step; "
            "open a new one",
            session_id=session_id,
            idle_timeout_seconds=f"{tombstone.idle_timeout:g}",
            expired_seconds_ago=f"{ago:.3f}",
        )
