"""Puts durable sessions into the store, and takes sessions over from it.

What the engine says has changed is written batch by batch, one on its way at a time: all of it once in every
interval, and at once what somebody waits for; what changes meanwhile gathers for the next batch.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import structlog

from recurra_server.engine import handover
from recurra_server.engine.accounts import Account
from recurra_server.engine.durability import BatchBound, Durability, Save, away
from recurra_server.engine.engine import Engine
from recurra_server.engine.errors import DrainingError, EngineError, SessionExistsError
from recurra_server.engine.ports import SessionStore, StoreError
from recurra_server.engine.sessions import Session, is_id
from recurra_server.engine.standing import Standing

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)
_BATCH = BatchBound(sessions=256, bytes=8 << 20)  # in one round trip
_PATIENCE = 5.0  # seconds that a call waits for a checkpoint
_LOOK_SECONDS = 1.0  # between two looks at the store
_PAUSES = (0.1, 0.2, 0.5, 1.0)  # after the first, second ... failure in a row
_REMEMBERED = 300.0  # seconds for which whoever had a session that was closed cannot bring it back
_MOST_OF_ONE = 8  # calls of one caller on their way to the store


class Checkpoints:
    """The sessions of one server in a store. All methods belong to the loop's thread.

    Attributes:
        written: Checkpoints so far: "saved", "stale" (another server owned the session) or "failed".
        taken_over: Sessions taken over so far.
        on_store: Called when the store goes away (False) and when it is back (True).

    Args:
        interval: Seconds in which what has changed is written once.
    """

    def __init__(self, engine: Engine, store: SessionStore, *, interval: float, clock: Callable[[], float]) -> None:
        self.written: Counter[str] = Counter()
        self.taken_over = 0
        self.on_store: list[Callable[[bool], object]] = []
        self._engine = engine
        self._store = store
        self._interval = interval
        self._clock = clock
        self._hurried = asyncio.Event()
        self._writing = asyncio.Lock()
        self._failures = 0
        self._identity = ""  # of the store
        # Names in the store that are being opened or taken over, and who waits for answers of the store.
        self._busy: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._asking: WeakKeyDictionary[Account, asyncio.Semaphore] = WeakKeyDictionary()
        engine.ledger.on_hurry = self._hurried.set

    # --- writing -------------------------------------------------------------------------

    async def write_forever(self) -> None:
        """Write what changes."""
        everything_at = self._clock() + self._interval
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(everything_at - self._clock()):
                    await self._hurried.wait()
            self._hurried.clear()
            everything = self._clock() >= everything_at
            if everything:
                everything_at = self._clock() + self._interval
            if not await self.write(everything=everything):
                await asyncio.sleep(_PAUSES[min(self._failures, len(_PAUSES)) - 1])
                self._hurried.set()  # whoever was put back waits still

    async def watch_forever(self) -> None:
        """Look after the store: whether it can be used even where nothing is written, and whether it is the same."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Ask the store who it is. One that may have lost what it kept gets all sessions that are here again."""
        try:
            identity = await self._store.identity()
        except StoreError as error:
            self._heard(error)
            return
        if self._identity not in ("", identity):
            durables = self._engine.durable_sessions()
            for durable in durables:
                durable.changed(self._clock())
            _log.warning("store_is_another", sessions_saved_again=len(durables))
        self._identity = identity
        if not self._engine.ledger.changed:  # else what is written will tell
            self._heard(None)

    async def write(self, *, everything: bool = True) -> bool:
        """Write all that has changed by now, or of that only what somebody waits for.

        What changes or is closed meanwhile is for the next time: else there would be no end to it.

        Returns:
            Whether the store took it.
        """
        async with self._writing:
            until, went_well = self._clock(), True
            batch = self._next_batch(until, everything=everything)
            if batch or self._engine.ledger.deletions:
                went_well = await self._write(batch)
            while went_well and (batch := self._next_batch(until, everything=everything)):
                went_well = await self._write(batch)
            return went_well

    def _next_batch(self, until: float, *, everything: bool) -> list[Save]:
        return self._engine.ledger.next_batch(handover.encode, _BATCH, until, hurried_only=not everything)

    async def _write(self, batch: list[Save]) -> bool:
        ledger, owned = self._engine.ledger, None
        deletions, ledger.deletions = ledger.deletions, {}
        try:
            await self._store.delete([(store_key, epoch, _REMEMBERED) for store_key, epoch in deletions.items()])
            owned = await self._store.save([save.checkpoint for save in batch])
            self._heard(None)
        except StoreError as error:
            self._heard(error)
        finally:  # whatever happens: what was begun is saved again, unless it is known to be there
            if owned is None:
                ledger.deletions = {**deletions, **ledger.deletions}
            self._settle(batch, owned or [None] * len(batch))
        return owned is not None

    def _settle(self, batch: list[Save], owned: Sequence[bool | None]) -> None:
        """Tell the sessions what became of their checkpoints: None where that is not known."""
        now = self._clock()
        for save, still_owned in zip(batch, owned, strict=True):
            session = save.durable.session
            if still_owned is None:
                self.written["failed"] += 1
                save.durable.failed(save, now)
            elif still_owned:
                self.written["saved"] += 1
                save.durable.saved(save, now)
            else:
                self.written["stale"] += 1
                _log.info("session_moved", session=session.id, epoch=save.durable.epoch)
                self._engine.let_go(session)

    # --- sessions ------------------------------------------------------------------------

    async def open(
        self,
        standing: Standing,
        *,
        session_id: str,
        idle_timeout: float | None,
        durability: Durability,
        caller: Account | None = None,
    ) -> Session:
        """Open a durable session; it is in the store when this returns.

        Raises:
            StoreUnavailableError, SessionExistsError: The store is away, or has a session of this id.
            Exception: As `Engine.open`.
        """
        async with self._alone(session_id and self._store_key(session_id, caller)):
            first = handover.first_checkpoint(
                self._engine,
                standing,
                self._clock(),
                session_id=session_id,
                idle_timeout=idle_timeout,
                durability=durability,
                caller=caller,
            )
            if first.store_key in self._engine.ledger.deletions:
                await self.write(everything=False)

            async def begin() -> Session:
                epoch = await self._store.create(first)
                if epoch is None:
                    raise SessionExistsError(
                        f"session {session_id!r} is open already; use another id or go on with it",
                        session_id=session_id,
                    )
                try:
                    return handover.own(self._engine, standing, replace(first, epoch=epoch), self._clock(), caller)
                except EngineError:
                    await self._store.delete([(first.store_key, epoch, _REMEMBERED)])
                    raise

            return await self._ask(caller, begin)

    async def take_over(self, session_id: str, caller: Account | None = None) -> Session | None:
        """Go on here with a session that the store has; None where the caller has none of this id there.

        Raises:
            StoreUnavailableError, DrainingError, CapacityError, ModelNotFoundError, SnapshotMismatchError: It cannot.
        """
        if not is_id(session_id):
            return None
        key = self._store_key(session_id, caller)
        async with self._alone(key):
            here = self._engine.find([session_id], self._clock(), caller)
            if here is not None:  # another call was quicker
                return here[0]
            if key in self._engine.ledger.deletions:
                return None
            if self._engine.draining:
                raise DrainingError("the server shuts down; go on elsewhere", retry_after=0.1)
            self._engine.room.check(caller or self._engine.accounts.nobody)
            checkpoint = await self._ask(caller, partial(self._store.take_over, key))
            if checkpoint is None:
                return None
            session = handover.adopt(self._engine, checkpoint, self._clock(), caller)
            self.taken_over += 1
            _log.info("session_taken_over", session=session_id, epoch=checkpoint.epoch, step=session.applied)
            return session

    async def saved(self, session: Session) -> None:
        """Wait until a session is in the store as it stands.

        Raises:
            StoreUnavailableError: The store is away; it will be saved later.
            EngineError: The session has ended.
        """
        durable = session.durable
        if durable is None:
            return
        told: asyncio.Future[EngineError | None] = asyncio.get_running_loop().create_future()

        def tell(error: EngineError | None) -> None:
            if not told.done():
                told.set_result(error)

        durable.when_saved(tell)
        try:
            async with asyncio.timeout(_PATIENCE):
                error = await told
        except TimeoutError:
            error = away(self._engine.ledger.trouble)
        if error is not None:
            raise error

    async def hand_over(self) -> int:
        """Let go of all sessions that are in the store as they stand: whoever is asked next goes on with them.

        Returns:
            How many.
        """
        await self.write()
        saved = [durable.session for durable in self._engine.durable_sessions() if durable.is_saved]
        for session in saved:
            self._engine.let_go(session, DrainingError("the server shuts down; go on elsewhere", retry_after=0.1))
        return len(saved)

    # --- inside --------------------------------------------------------------------------

    def _store_key(self, session_id: str, caller: Account | None) -> str:
        return (caller or self._engine.accounts.nobody).store_key(session_id)

    @asynccontextmanager
    async def _alone(self, store_key: str) -> AsyncIterator[None]:
        """One call at a time opens a session of a name or takes it over; without a name it is alone anyway."""
        lock = asyncio.Lock()
        async with self._busy.setdefault(store_key, lock) if store_key else lock:
            yield

    async def _ask(self, caller: Account | None, ask: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Ask the store for a caller.

        Where that are many calls, as of somebody who asks for sessions that are nowhere, they wait for one another:
        neither checkpoints nor other callers have to wait behind them. What was begun is done to its end, even for a
        caller who does not wait for it: the store must not have sessions that are nobody's.
        """
        asking = self._asking.setdefault(caller or self._engine.accounts.nobody, asyncio.Semaphore(_MOST_OF_ONE))
        await asking.acquire()
        asked = asyncio.ensure_future(ask())
        asked.add_done_callback(lambda _: asking.release())
        try:
            return await asyncio.shield(asked)
        except StoreError as error:
            self._heard(error)
            raise away(error.plain) from None

    def _heard(self, trouble: StoreError | None) -> None:
        """The store has answered, or not."""
        ledger, before = self._engine.ledger, self._engine.ledger.trouble
        self._failures = 0 if trouble is None else self._failures + 1
        ledger.trouble = "" if trouble is None else trouble.plain
        if trouble is not None and ledger.trouble != before:
            _log.error("store_is_away", why=str(trouble))
        elif trouble is None and before:
            _log.info("store_is_back")
        if bool(before) != bool(trouble):
            for tell in self.on_store:
                tell(trouble is None)
