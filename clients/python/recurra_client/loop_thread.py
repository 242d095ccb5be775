"""The event loop, in a thread of its own, that the blocking clients of a process share."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, Final, TypeVar

T = TypeVar("T")


class _LoopThread:
    """Made by the first that needs it; a process that is forked later has its memory, but neither thread nor gRPC."""

    def __init__(self) -> None:
        self._making = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_left_behind = False
        if sys.platform != "win32":
            # Nobody is making it while a fork copies the lock.
            os.register_at_fork(
                before=self._making.acquire, after_in_parent=self._making.release, after_in_child=self._leave_behind
            )

    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that all blocking clients of this process share."""
        if self.is_left_behind:
            raise RuntimeError(
                "the process that forked this one had used a blocking client before, and neither that nor gRPC works "
                'on this side of the fork: connect only in the child, or start it with "spawn"'
            )
        if self._loop is None:
            with self._making:
                if self._loop is None:
                    loop = asyncio.new_event_loop()
                    threading.Thread(target=loop.run_forever, name="recurra-client", daemon=True).start()
                    self._loop = loop
        return self._loop

    def _leave_behind(self) -> None:
        self.is_left_behind = self._loop is not None
        self._making.release()


_thread: Final = _LoopThread()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine there, and wait for what it returns.

    Raises:
        RuntimeError: This process was forked from one that had done so.
    """
    future = _start(work)
    try:
        return future.result()
    except BaseException:  # such as KeyboardInterrupt
        future.cancel()
        raise


def iterate(items: AsyncGenerator[T]) -> Iterator[T]:
    """Run an async generator there, and yield what it yields; it is closed with this one, before what is run later."""

    async def advance() -> tuple[T] | None:
        try:
            return (await anext(items),)
        except StopAsyncIteration:
            return None

    async def finish() -> None:
        await items.aclose()

    try:
        while (item := run(advance())) is not None:
            yield item[0]
    finally:
        # Not waited for: the garbage collector may close this one on the loop's own thread, or at the program's end,
        # when that thread runs no more.
        if not sys.is_finalizing() and not _thread.is_left_behind:
            _start(finish())


def _start(work: Coroutine[Any, Any, T]) -> Future[T]:
    try:
        return asyncio.run_coroutine_threadsafe(work, _thread.loop())
    except BaseException:
        work.close()
        raise
