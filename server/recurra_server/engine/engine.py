"""The engine as a whole: which models are served, which sessions are open."""

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import cast

from recurra_server.engine.accounts import Account, Accounts
from recurra_server.engine.durability import Durable, moved
from recurra_server.engine.errors import (
    DrainingError,
    EngineError,
    SessionExistsError,
)
from recurra_server.engine.ledger import Ledger
from recurra_server.engine.limits import Limits
from recurra_server.engine.room import Room
from recurra_server.engine.served_model import Array, ServedModel
from recurra_server.engine.sessions import LONGEST_ID, Session, check_id, not_found
from recurra_server.engine.shelf import Shelf
from recurra_server.engine.standing import Standing
from recurra_server.engine.tombstones import Tombstone, Tombstones


class Engine:
    """Models and sessions; every method that needs the time takes it as `now`, in seconds.

    Where a method takes a `caller`, it sees and opens that account's sessions; None is the account of all callers who
    are not told apart.

    Attributes:
        accounts: Whose the sessions are.
        limits: The bounds it keeps.
        room: How many more sessions there may be.
        shelf: The models.
        draining: While True, no session is opened.
        ended: Sessions ended so far, by (model name, version, digest, "closed", "expired" or "moved").
        ledger: The sessions whose checkpoints are to be saved.
        opened: Sessions opened so far, by (model name, version, digest).
        elsewhere: What is added to SESSION_NOT_FOUND: where else the session may be.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.draining = False
        self.elsewhere = ""
        self.opened: Counter[tuple[str, str, str]] = Counter()
        self.ended: Counter[tuple[str, str, str, str]] = Counter()
        self.shelf = Shelf()
        self.ledger = Ledger()
        self.accounts = Accounts()
        self.room = Room(limits)
        self._tombstones = Tombstones(limits)

    # --- models --------------------------------------------------------------------------

    def add_model(self, model: ServedModel) -> ServedModel:
        """Serve a version of a model; see `Shelf.add`."""
        return self.shelf.add(model)

    def models(self) -> list[ServedModel]:
        """All served versions, by name, the newest version first."""
        return self.shelf.served()

    def model(self, name: str, version: str = "", digest: str = "") -> ServedModel:
        """Find a version of a model; see `Shelf.find`.

        Raises:
            ModelNotFoundError: It is not served.
        """
        return self.shelf.find(name, version, digest)

    # --- sessions ------------------------------------------------------------------------

    def open(
        self,
        model: ServedModel,
        now: float,
        *,
        session_id: str = "",
        idle_timeout: float | None = None,
        initial_states: Mapping[str, Array] | None = None,
        skip_admission: bool = False,
        caller: Account | None = None,
    ) -> Session:
        """Begin a session.

        Args:
            model: What it runs on until it ends.
            now: The time in seconds.
            session_id: Its id; empty to make an unguessable one.
            idle_timeout: Seconds it may go unused; None for the default.
            initial_states: States to begin from, and constants of this session, by the name of the graph's input,
                each `[*dims]`; the others have their declared value.
            skip_admission: Whether it goes on here, having begun elsewhere: then only bounds of sessions and states can
                refuse it.
            caller: Whose it is to be.

        Raises:
            InputNameError, SessionIdError, SessionExistsError, InvalidRequestError, CapacityError, DrainingError,
                ModelNotFoundError: Nothing was opened.
        """
        owner = caller or self.accounts.nobody
        session_id, timeout = self.check_open(
            model, now, session_id, idle_timeout, skip_admission=skip_admission, caller=caller
        )
        session = model.open(session_id, timeout, now, initial_states, owner)
        self._begin(session)
        return session

    def begin_anew(self, before: Session, model: ServedModel, now: float) -> Session:
        """Begin a session in the place of one at rest: with its id and for its owner, at the initial states.

        There are no more sessions than before: so neither load nor draining refuses it.

        Raises:
            EngineError: The one before has ended; as `Session.check_open`.
            ModelNotFoundError, InputNameError, CapacityError: It cannot be on this model, or its owner may not have
                what more it remembers; the one before is open as it was.
        """
        before.check_open()
        self.shelf.check(model)  # it may have gone while the one before came to rest
        more = model.signature.state_bytes - before.model.signature.state_bytes
        if more > 0:
            before.owner.check_memory(more)
        session = model.open(before.id, self.limits.default_idle_timeout, now, None, before.owner)
        self.close(before)
        self._begin(session)
        return session

    def go_on(
        self,
        standing: Standing,
        now: float,
        *,
        session_id: str = "",
        idle_timeout: float | None = None,
        skip_admission: bool = False,
        caller: Account | None = None,
    ) -> Session:
        """Open a session that goes on from where another one stands, or one that has not begun.

        Raises:
            Exception: As `open`.
        """
        session = self.open(
            standing.model,
            now,
            session_id=session_id,
            idle_timeout=idle_timeout,
            initial_states=standing.values,
            skip_admission=skip_admission,
            caller=caller,
        )
        session.applied = standing.applied
        session.keep(standing.last_reply)
        return session

    def check_open(
        self,
        model: ServedModel,
        now: float,
        session_id: str = "",
        idle_timeout: float | None = None,
        *,
        skip_admission: bool = False,
        caller: Account | None = None,
    ) -> tuple[str, float]:
        """Whether a session can be opened.

        Returns:
            The id that it gets, and its idle timeout.

        Raises:
            Exception: As `open`.
        """
        if self.draining:
            raise DrainingError("the server shuts down; open the session on another one", retry_after=1.0)
        self.shelf.check(model)  # it may have gone since it was found
        owner = caller or self.accounts.nobody
        session_id = self._new_id(session_id, now, owner)
        timeout = self.limits.idle_timeout(idle_timeout)
        self.room.check_open(model, owner, now, skip_admission=skip_admission)
        return session_id, timeout

    @contextmanager
    def borrow(
        self,
        model: ServedModel,
        now: float,
        initial_states: Mapping[str, Array] | None = None,
        caller: Account | None = None,
    ) -> Iterator[Session]:
        """A session that only one call knows, for as long as that takes.

        Raises:
            CapacityError: All sessions are in use.
            InputNameError: As `open`.
        """
        owner = caller or self.accounts.nobody
        self.room.check(owner, model.signature.state_bytes)
        session = model.open(None, float("inf"), now, initial_states, owner)
        self.room.taken += 1
        owner.borrowed += 1
        try:
            yield session
        finally:
            self.room.taken -= 1
            owner.borrowed -= 1
            model.close(session)

    def session(self, session_id: str, now: float, caller: Account | None = None) -> Session:
        """Find an open session of the caller.

        Raises:
            SessionExpiredError: It has expired, and that is still remembered.
            SessionNotFoundError: It is not open.
        """
        owner = caller or self.accounts.nobody
        session = owner.sessions.get(session_id)
        if session is None:
            raise self._missing(session_id[:LONGEST_ID], now, owner)
        if self._expire_if_due(session, now):
            raise self._missing(session_id, now, owner)
        return session

    def find(self, session_ids: Sequence[str], now: float, caller: Account | None = None) -> list[Session] | None:
        """Find many open sessions of one model at once; None where one is not open, or of another model."""
        known = (caller or self.accounts.nobody).sessions
        found = [known.get(session_id) for session_id in session_ids]
        first = found[0]
        if first is None or not all(session is not None and session.model is first.model for session in found):
            return None
        sessions = cast("list[Session]", found)
        expired = first.model.slots.any_expired([session.slot for session in sessions], now)
        return None if expired else sessions

    def sessions(self, model: str, start: int, count: int, caller: Account | None = None) -> tuple[list[Session], int]:
        """List the caller's open sessions in the order they were opened.

        Returns:
            The sessions from the `start`-th on, at most `count`, and how many there are in all.
        """
        owner = caller or self.accounts.nobody
        if not model:
            return list(islice(owner.sessions.values(), start, start + count)), len(owner.sessions)
        chosen = [session for session in owner.sessions.values() if session.model.name == model]
        return chosen[start : start + count], len(chosen)

    def close(self, session: Session) -> None:
        """End a session and free its memory; steps that wait fail.

        Raises:
            EngineError: It has ended already; as `Session.check_open`.
        """
        session.check_open()
        if session.durable is not None:
            self.ledger.delete(session.durable)
        self._end(session, "closed")

    def let_go(self, session: Session, error: EngineError | None = None) -> None:
        """Another server goes on with a session: what it is here is of no more use, and steps that wait fail."""
        if not session.closed:
            self._end(session, "moved", error or moved(session.id))

    def durable_sessions(self) -> list[Durable]:
        """All that are not ephemeral."""
        return [session.durable for session in self.accounts.sessions() if session.durable is not None]

    def reset(self, session: Session, now: float) -> None:
        """Put a session at rest back to its beginning.

        Raises:
            EngineError: It has ended; as `Session.check_open`.
        """
        session.check_open()
        session.model.slots.reset(session.slot)
        session.model.slots.touch(session.slot, now)
        session.count_from(0, None, now)

    def expire(self, now: float) -> int:
        """End the sessions whose time is up; forget old tombstones, and who ran steps but is even again.

        Returns:
            How many sessions were ended.
        """
        due = [
            session
            for model in self.shelf.all()
            for session in model.slots.expired(now)
            if session.current is None and session.id is not None
        ]
        for session in due:
            self._expire(session)
        self._tombstones.forget_old(now)
        self.accounts.forget_even(now)
        return len(due)

    # --- inside --------------------------------------------------------------------------

    def _begin(self, session: Session) -> None:
        """From now on the session is found."""
        assert session.id is not None  # noqa: S101 - what only one call knows is not to be found
        session.owner.sessions[session.id] = session
        self.room.taken += 1
        self._tombstones.forget(session.owner.store_key(session.id))
        self.opened[session.model.key] += 1

    def _new_id(self, wanted: str, now: float, owner: Account) -> str:
        if not wanted:
            return secrets.token_urlsafe(16)
        check_id(wanted)
        session = owner.sessions.get(wanted)
        if session is not None and not self._expire_if_due(session, now):
            raise SessionExistsError(
                f"session {wanted!r} is open already; use another id or go on with it", session_id=wanted
            )
        return wanted

    def _expire_if_due(self, session: Session, now: float) -> bool:
        due = session.current is None and session.model.slots.expires_at(session.slot) <= now
        if due:
            self._expire(session)
        return due

    def _expire(self, session: Session) -> None:
        assert session.id is not None  # noqa: S101 - only sessions with an id expire
        slots = session.model.slots
        tombstone = Tombstone(slots.expires_at(session.slot), float(slots.idle_timeout[session.slot]))
        self._end(session, "expired")
        self._tombstones.put(session.owner.store_key(session.id), tombstone)

    def _end(self, session: Session, reason: str, error: EngineError | None = None) -> None:
        if session.id is not None:
            del session.owner.sessions[session.id]
            self.room.taken -= 1
            self.ended[*session.model.key, reason] += 1
        session.model.close(session, error)
        if session.durable is not None:
            session.durable.end()

    def _missing(self, session_id: str, now: float, owner: Account) -> EngineError:
        expired = self._tombstones.error(owner.store_key(session_id), session_id, now)
        return expired or not_found(session_id, self.elsewhere)
