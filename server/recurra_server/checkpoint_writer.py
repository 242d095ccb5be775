"""Writes what has changed of durable sessions into the store, and deletes there what was closed.

Only the writer does: whoever waits for a checkpoint or a deletion hurries it, and is told (`engine/ledger.py`). So
nobody who stops waiting takes with him what others wait for. All that has changed is written once in every interval, in
batches, one after the other; what somebody waits for is written at once, and between two of those batches.

When a batch fails though the store is there, one of its sessions is at fault. So each is tried again alone, beside the
batches, which go on with all others (`engine/apart.py`). Who fails alone is put off for longer each time.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from math import inf
from typing import Final

import structlog

from recurra_server.engine import handover
from recurra_server.engine.durability import Change, Save
from recurra_server.engine.engine import Engine
from recurra_server.engine.ledger import BatchBound
from recurra_server.engine.ports import SessionStore, StoreError

REMEMBERED = 300.0
"""Seconds for which whoever had a session that was closed cannot bring it back."""

LAP_SECONDS: Final = 5.0
"""For which whoever lets sessions go, or ends, waits for what can still be saved."""

_log = structlog.get_logger(__name__)
_BATCH = BatchBound(sessions=256, bytes=8 << 20)  # in one round trip
_DELETIONS = 256  # in one round trip
_LOOK_SECONDS = 1.0  # between two looks at the store, or at what was put off
_PAUSES = (0.1, 0.2, 0.5, 1.0)  # after the first, second ... failure of the store in a row


class CheckpointWriter:
    """The way of one server's checkpoints into the store. All methods belong to the loop's thread.

    Attributes:
        written: Checkpoints so far: "saved", "stale" (another server owned the session) or "failed".
        on_store: Called when the store goes away (False) and when it is back (True).

    Args:
        interval: Seconds in which what has changed is written once.
    """

    def __init__(self, engine: Engine, store: SessionStore, *, interval: float, clock: Callable[[], float]) -> None:
        self.written: Counter[str] = Counter()
        self.on_store: list[Callable[[bool], object]] = []
        self._engine = engine
        self._ledger = engine.ledger
        self._store = store
        self._interval = interval
        self._clock = clock
        self._hurried = asyncio.Event()
        self._writing = asyncio.Lock()  # one part at a time is written
        self._put_off = asyncio.Event()  # something was
        self._retrying = asyncio.Lock()  # one at a time is tried alone
        self._failures = 0
        self._identity = ""  # of the store
        engine.ledger.on_hurry = self._hurried.set

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
            if not await self._write(everything=everything):
                await asyncio.sleep(_PAUSES[min(self._failures, len(_PAUSES)) - 1])
                self._hurried.set()  # whoever was put back waits still

    async def retry_forever(self) -> None:
        """Try again what was put off."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._put_off.wait()
            self._put_off.clear()
            while await self._try_alone(self._clock()):
                pass

    async def watch_forever(self) -> None:
        """Look after the store: whether it can be used even where nothing is written, and whether it is the same."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> bool:
        """Ask the store who it is. One that may have lost what it kept gets all sessions that are here again.

        Returns:
            Whether it is there, and takes what is sent.
        """
        try:
            identity = await self._store.identity()
        except StoreError as error:
            self._heard(error)
            return False
        if self._identity not in ("", identity):
            durables = self._engine.durable_sessions()
            for durable in durables:
                durable.changed(self._clock())
            _log.warning("store_is_another", sessions_saved_again=len(durables))
        self._identity = identity
        self._heard(None)
        return True

    async def write(self) -> bool:
        """Write all that has changed, delete what was closed, and try again what was put off, each once.

        That takes `LAP_SECONDS` at most, whatever the store does; what is not done then is left to the chores. Where
        the caller stops waiting it goes on: it is what others wait for.

        Returns:
            Whether the store was there to the end. What could not be saved though it was stays in the ledger.
        """
        lap = asyncio.ensure_future(self._lap(self._clock() + LAP_SECONDS))
        await asyncio.wait((lap,), timeout=LAP_SECONDS)
        return lap.done() and lap.result()

    async def _lap(self, end: float) -> bool:
        """As `write`; nothing is begun after the end."""
        if not await self._write(everything=True, end=end):
            return False
        until = self._clock()
        while self._clock() < end and await self._try_alone(until):
            pass
        return self._ledger.store_up

    async def _write(self, *, everything: bool, end: float = inf) -> bool:
        """Write all that has changed by now, or only what somebody waits for, and delete what was closed by now.

        What changes or is closed meanwhile is for the next time: else there would be no end to it.

        Returns:
            Whether the store is there.
        """
        until, closed = self._clock(), len(self._ledger.deletions)
        for part in count(1):
            async with self._writing:
                if not await self._delete():
                    return False
                batch = self._ledger.next_batch(_BATCH, until, hurried_only=not everything)
                if not await self._save(batch):
                    return False
                if (not batch and part * _DELETIONS >= closed) or self._clock() >= end:
                    break
                if not await self._save(self._ledger.next_batch(_BATCH, self._clock(), hurried_only=True)):
                    return False
        return True

    async def _try_alone(self, until: float) -> bool:
        """Try again one of those that were put off until then.

        Returns:
            Whether there was one, and the store is there.
        """
        async with self._retrying:
            await asyncio.sleep(0)  # what cannot be made bytes waits for nothing, and there may be many
            change = self._ledger.next_alone(until)
            return change is not None and await self._save([change])

    # --- one part of it ------------------------------------------------------------------

    async def _delete(self) -> bool:
        """Delete some of what was closed.

        Returns:
            Whether the store is there.
        """
        deletions, deleted = self._ledger.next_deletions(_DELETIONS), False
        if not deletions:
            return True
        try:
            await self._store.delete([(deletion.store_key, deletion.epoch, REMEMBERED) for deletion in deletions])
            deleted = True
            self._heard(None)
        except StoreError:
            return await self.look()
        finally:
            if deleted:
                self._ledger.deleted(deletions)
            else:
                self._ledger.not_deleted(deletions)
        return True

    async def _save(self, changes: Sequence[Change]) -> bool:
        """Save what is one batch. One that the store does not take though it is there is put off.

        Returns:
            Whether the store is there.
        """
        batch = self._begin(changes)
        if not batch:
            return True
        owned: list[bool] = []
        there = False
        try:
            owned = await self._store.save([save.checkpoint for save in batch])
            there = True
            self._heard(None)
        except Exception as error:
            there = await self.look()
            if there and len(batch) == 1:
                _cannot_be_saved(batch[0].change, error)
        finally:  # whatever happens: what was begun is saved again, unless it is known to be there
            if owned:
                self._saved(batch, owned)
            else:
                self._failed(batch, at_fault=there)
        return there

    def _begin(self, changes: Sequence[Change]) -> list[Save]:
        """Begin to save them; what cannot be made bytes is put off, as that is its own fault."""
        begun: list[Save] = []
        failed: list[Save] = []
        for change in changes:
            try:
                data = handover.encode(change.durable.session)
            except Exception as error:  # whatever it is: it is of this one session
                _cannot_be_saved(change, error)
                failed.append(change.durable.take(b""))
            else:
                begun.append(change.durable.take(data))
        self._failed(failed, at_fault=True)  # only now: whoever is told may change other sessions
        return begun

    def _saved(self, batch: Sequence[Save], owned: Sequence[bool]) -> None:
        """Tell the sessions that the store has answered: whether they are still this server's."""
        now = self._clock()
        for save, still_owned in zip(batch, owned, strict=True):
            self.written["saved" if still_owned else "stale"] += 1
            try:
                if still_owned:
                    save.durable.saved(save, now)
                else:
                    session = save.durable.session
                    _log.info("session_moved", session=session.id, epoch=save.durable.epoch)
                    self._engine.let_go(session)
            except Exception:
                _not_told(save)

    def _failed(self, batch: Sequence[Save], *, at_fault: bool) -> None:
        """Tell the sessions that it is not known whether the store has their checkpoints."""
        now = self._clock()
        for save in batch:
            self.written["failed"] += 1
            try:
                save.durable.failed(save, now, at_fault=at_fault)
            except Exception:
                _not_told(save)
        if batch and at_fault:
            self._put_off.set()

    def _heard(self, trouble: StoreError | None) -> None:
        """The store has answered, or not."""
        ledger, before = self._ledger, self._ledger.trouble
        self._failures = 0 if trouble is None else self._failures + 1
        ledger.trouble = "" if trouble is None else trouble.plain
        if trouble is not None and ledger.trouble != before:
            _log.error("store_is_away", why=str(trouble))
        elif trouble is None and before:
            _log.info("store_is_back")
        if bool(before) != bool(trouble):
            for tell in self.on_store:
                tell(trouble is None)


def _not_told(save: Save) -> None:
    """What goes wrong where a session tells who waits for it is no matter of the others of its batch."""
    _log.exception("session_not_told", session=save.durable.session.id)


def _cannot_be_saved(change: Change, error: Exception) -> None:
    """Say so in the log: once until it is saved, when it has failed alone too."""
    if change.failures == 1:
        session = change.durable.session
        _log.error("session_not_saved", session=session.id, why=f"{type(error).__name__}: {error}")
