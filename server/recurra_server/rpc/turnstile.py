"""Lets the messages of the callers' streams in: by turns, and no faster than each may run steps.

All messages are read on one thread. Where one caller floods it, a turn of the loop would be as long as there are
streams of theirs, and everybody else's next message waits for its end. So while several callers are there, a turn
takes only so many messages of each. The next turn begins when one of those let in has come: between them the loop
sleeps, and the threads that bring messages get its processor.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final
from weakref import WeakKeyDictionary

from recurra_server.engine.accounts import Account

EACH: Final = 1
"""Messages of one caller in a turn. With 8, one who floods beside a quiet caller gets twice as many steps in, and the
quiet one's p99 is three times what it is alone instead of less than twice."""
_LATELY: Final = 1.0  # seconds for which somebody counts as being there
_LONGEST: Final = 0.001  # seconds of a turn: those who were let in may have nothing to send


class Turnstile:
    """Belongs to the event loop's thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._passed: dict[Account, int] = {}  # in this turn
        self._waiting: dict[Account, deque[asyncio.Future[None]]] = {}
        self._ending = False  # with this turn of the loop
        self._timer: asyncio.TimerHandle | None = None
        self._here: set[Account] = set()  # since `_since`, and in the second before
        self._before: set[Account] = set()
        self._since = 0.0
        self._indebted: WeakKeyDictionary[Account, asyncio.Lock] = WeakKeyDictionary()

    def pay(self, account: Account) -> Awaitable[None] | None:
        """A message of a caller has come: before it is taken in, wait for what this returns.

        A debt is the caller's and not the stream's, so a new stream has to wait, too. Where many wait, they do so one
        behind the other, each for what those before it have run.
        """
        line = self._indebted.get(account)
        if not account.debt(self._clock()) and (line is None or not line.locked()):
            return None
        return self._pay(account)

    async def _pay(self, account: Account) -> None:
        async with self._indebted.setdefault(account, asyncio.Lock()):
            await asyncio.sleep(account.debt(self._clock()))

    def enter(self, account: Account) -> "asyncio.Future[None] | None":
        """A message of a caller was taken in: before the next one of the same stream, wait for what this returns."""
        self._here.add(account)
        if not self._ending:
            self._ending = True
            asyncio.get_running_loop().call_soon(self._turn)
        passed = self._passed.get(account, 0)
        self._passed[account] = passed + 1
        if passed < EACH or not self._is_crowded():
            return None
        wait: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(account, deque()).append(wait)
        return wait

    def _is_crowded(self) -> bool:
        return len(self._here | self._before) > 1

    def _turn(self) -> None:
        """A turn is over: let those in who wait for the next."""
        self._ending = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._passed.clear()
        now = self._clock()
        if now - self._since > _LATELY:
            self._before, self._here, self._since = self._here, set(self._waiting), now
        for account, waiting in list(self._waiting.items()):
            crowded, admitted = self._is_crowded(), 0
            while waiting and (admitted < EACH or not crowded):
                wait = waiting.popleft()
                if not wait.done():  # else its stream is gone
                    wait.set_result(None)
                    admitted += 1
            self._passed[account] = admitted
            if not waiting:
                del self._waiting[account]
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(_LONGEST, self._turn)
