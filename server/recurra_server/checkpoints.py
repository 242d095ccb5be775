"""Opens durable sessions in the store, takes sessions over from it, and waits for what is written there."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import structlog

from recurra_server.checkpoint_writer import REMEMBERED, CheckpointWriter
from recurra_server.engine import handover
from recurra_server.engine.accounts import Account
from recurra_server.engine.durability import Durability, Told, away
from recurra_server.engine.engine import Engine
from recurra_server.engine.errors import DrainingError, EngineError, SessionExistsError, StoreUnavailableError
from recurra_server.engine.ports import SessionStore, StoreError
from recurra_server.engine.sessions import Session, is_id
from recurra_server.engine.standing import Standing

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)
_PATIENCE = 5.0  # seconds that a call waits for what is written
_MOST_OF_ONE = 8  # calls of one caller on their way to the store, and as many that have a session saved to be sure


class Checkpoints:
    """The sessions of one server in a store. All methods belong to the loop's thread.

    Attributes:
        writer: Writes them; it has to run for whoever waits here.
        taken_over: Sessions taken over so far.

    Args:
        interval: Seconds in which what has changed is written once.
    """

    def __init__(self, engine: Engine, store: SessionStore, *, interval: float, clock: Callable[[], float]) -> None:
        self.writer = CheckpointWriter(engine, store, interval=interval, clock=clock)
        self.taken_over = 0
        self._engine = engine
        self._store = store
        self._clock = clock
        # Names in the store that are being opened or taken over, and who waits for answers of the store.
        self._busy: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._asking: WeakKeyDictionary[Account, asyncio.Semaphore] = WeakKeyDictionary()
        self._unsure: WeakKeyDictionary[Account, asyncio.Semaphore] = WeakKeyDictionary()

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

        async def begin() -> Session:
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
                await self._deleted(first.store_key)
                epoch = await self._store.create(first)
                if epoch is None:
                    raise SessionExistsError(
                        f"session {session_id!r} is open already; use another id or go on with it",
                        session_id=session_id,
                    )
                try:
                    return handover.own(self._engine, standing, replace(first, epoch=epoch), self._clock(), caller)
                except EngineError:
                    await self._store.delete([(first.store_key, epoch, REMEMBERED)])
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

        async def take() -> Session | None:
            async with self._alone(key):
                here = self._engine.find([session_id], self._clock(), caller)
                if here is not None:  # another call was quicker
                    return here[0]
                if key in self._engine.ledger.deletions:
                    return None
                if self._engine.draining:
                    raise DrainingError("the server shuts down; go on elsewhere", retry_after=0.1)
                self._engine.room.check(caller or self._engine.accounts.nobody)
                checkpoint = await self._store.take_over(key)
                if checkpoint is None:
                    return None
                session = handover.adopt(self._engine, checkpoint, self._clock(), caller)
                self.taken_over += 1
                _log.info("session_taken_over", session=session_id, epoch=checkpoint.epoch, step=session.applied)
                return session

        return await self._ask(caller, take)

    async def saved(self, session: Session) -> None:
        """Wait until a session is in the store as it stands.

        Raises:
            StoreUnavailableError: The store is away; it will be saved later.
            EngineError: The session has ended.
        """
        durable = session.durable
        if durable is None:
            return
        await self._told(durable.when_saved, durable.never_mind)

    async def make_sure(self, session: Session) -> None:
        """Have a session saved before its caller is told that a step is not applied here; see `Durable.make_sure`.

        Only a few calls of one caller do so at a time: they cost a checkpoint each, though nothing has changed.

        Raises:
            StoreUnavailableError: The store is away, so it is not known whose the session is.
            EngineError: The session has ended.
        """
        if session.durable is None:
            return
        async with self._unsure.setdefault(session.owner, asyncio.Semaphore(_MOST_OF_ONE)):
            session.durable.make_sure(self._clock())
            await self.saved(session)

    async def deleted(self, session: Session) -> None:
        """Wait until a session that was closed is gone from the store, so that its id is free, wherever it is opened.

        Where the store is away it is deleted later.
        """
        if session.durable is not None:
            with suppress(StoreUnavailableError):
                await self._deleted(session.durable.store_key)

    async def hand_over(self) -> int:
        """Let go of all sessions that are in the store as they stand: whoever is asked next goes on with them.

        Returns:
            How many.
        """
        await self.writer.write()
        saved = [durable.session for durable in self._engine.durable_sessions() if durable.is_saved]
        for session in saved:
            self._engine.let_go(session, DrainingError("the server shuts down; go on elsewhere", retry_after=0.1))
        return len(saved)

    # --- inside --------------------------------------------------------------------------

    async def _deleted(self, store_key: str) -> None:
        """Wait until nothing that was closed here is in the store under a name.

        Raises:
            StoreUnavailableError: The store is away.
        """
        deletion = self._engine.ledger.deletions.get(store_key)
        if deletion is not None:
            await self._told(deletion.told.append, deletion.never_mind)

    async def _told(self, begin: Callable[[Told], object], end: Callable[[Told], object]) -> None:
        """Wait to be told how it went with what is written.

        Args:
            begin: Given what is to be told.
            end: Given the same, when nobody waits any more.

        Raises:
            StoreUnavailableError: It takes too long.
            EngineError: What was told.
        """
        answer: asyncio.Future[EngineError | None] = asyncio.get_running_loop().create_future()

        def tell(error: EngineError | None) -> None:
            if not answer.done():
                answer.set_result(error)

        begin(tell)
        try:
            async with asyncio.timeout(_PATIENCE):
                error = await answer
        except TimeoutError:
            error = away(self._engine.ledger.trouble)
        finally:  # who is told of a SYNC session waits there for as long as the store is away
            end(tell)
        if error is not None:
            raise error

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
        caller who does not wait for it: the store must not have sessions that are nobody's, and whoever has a name to
        itself (`_alone`) keeps it until the store has answered.
        """
        asking = self._asking.setdefault(caller or self._engine.accounts.nobody, asyncio.Semaphore(_MOST_OF_ONE))
        await asking.acquire()
        asked = asyncio.ensure_future(ask())
        asked.add_done_callback(lambda _: asking.release())
        try:
            return await asyncio.shield(asked)
        except StoreError as error:
            if self._engine.ledger.store_up:  # it may be this call's own fault: it is large, perhaps
                await self.writer.look()
            raise away(error.plain) from None
