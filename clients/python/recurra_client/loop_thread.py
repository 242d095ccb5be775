"""The event loop, in a thread of its own, that the blocking clients of a process share."""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
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


def iterate(items: AsyncIterator[T]) -> Iterator[T]:
    """Run an async generator there, and yield what it yields; it is closed with this one."""
    end = object()

    async def advance() -> T | object:
        return await anext(items, end)

    async def finish() -> None:
        await items.aclose()  # type: ignore[attr-defined]  # they are all generators

    try:
        while (item := run(advance())) is not end:
            yield item  # type: ignore[misc]
    finally:
        run(finish())
