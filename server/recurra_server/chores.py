"""What a server does besides answering calls, for as long as it runs."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

_log = structlog.get_logger(__name__)

Chore = Callable[[], Awaitable[None]]


class Chores:
    """Chores that go on until they are ended; one that fails is logged, and begun again after `pause` seconds."""

    def __init__(self, *, pause: float = 1.0) -> None:
        self._pause = pause
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, *chores: Chore) -> None:
        """Begin chores on the running event loop."""
        self._tasks += [asyncio.ensure_future(self._again_and_again(chore)) for chore in chores]

    async def end(self) -> None:
        """Cancel all, and again: `asyncio.wait_for` of Python 3.11, which the store's client uses, can lose that."""
        while pending := [task for task in self._tasks if not task.done()]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=0.2)

    async def _again_and_again(self, chore: Chore) -> None:
        while True:
            try:
                await chore()
            except Exception:
                _log.exception("chore_failed", again_in_seconds=self._pause)
            await asyncio.sleep(self._pause)
