"""The event loop, in a thread of its own, that the blocking clients of a process share."""

import asyncio
import functools
import sys
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop that all blocking clients of this process share."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="recurra-client", daemon=True).start()
    return loop


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine there, and wait for what it returns."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
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
        if not sys.is_finalizing():
            asyncio.run_coroutine_threadsafe(finish(), _loop())
