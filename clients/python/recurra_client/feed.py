"""Cutting a sequence of steps into messages: the logic behind `Session.stream`."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from recurra_client.errors import RecurraError, StateNotFiniteError

Run = Callable[[Any], Awaitable[Any]]
Answers = tuple[list[Any], RecurraError | None]
"""The outputs of the steps that succeeded, and the error of the one after them that failed, if one did."""


async def run_feed(step: Run, steps: Run, xs: Any, window: int) -> AsyncIterator[Answers]:
    """Run a sequence through `step` and `steps`, a message at a time, up to the first failure."""
    if window < 1:
        raise ValueError(f"window is {window}, expected at least 1")
    if isinstance(xs, AsyncIterable):
        async for gathered in _gather(xs, window):
            yield await run_together(step, steps, gathered)
    else:
        for chunk in chunks(xs, window):
            yield await run_together(step, steps, chunk)


def chunks(xs: Any, window: int) -> Iterator[list[Any]]:
    """Cut what is all there (an array, a dict of arrays, a list) by `window`, and anything else step by step."""
    if isinstance(xs, Mapping):
        arrays = {name: np.asarray(values) for name, values in xs.items()}
        lengths = {len(array) for array in arrays.values()}
        if len(lengths) > 1:
            raise ValueError(f"the inputs have different lengths: {sorted(lengths)}")
        xs = [{name: array[t] for name, array in arrays.items()} for t in range(min(lengths, default=0))]
    if isinstance(xs, Sequence) or hasattr(xs, "__array__"):
        for start in range(0, len(xs), window):
            yield list(xs[start : start + window])
    else:
        for x in xs:
            yield [x]


async def run_together(step: Run, steps: Run, xs: list[Any]) -> Answers:
    """Run a few steps as one chunk; where that fails, one by one, to see how far they go."""
    if len(xs) > 1:
        try:
            return split(await steps(stack(xs)), len(xs)), None
        except (ValueError, StateNotFiniteError):  # an InputError is a ValueError
            pass  # a chunk is applied as a whole or not at all
    outputs: list[Any] = []
    for x in xs:
        try:
            outputs.append(await step(x))
        except RecurraError as error:
            return outputs, error
    return outputs, None


def stack(xs: list[Any]) -> Any:
    """Steps as a chunk: T arrays of [dims] as one of [T, dims], T dicts as a dict. `split` is its inverse."""
    if isinstance(xs[0], Mapping):
        return {name: np.stack([np.asarray(x[name]) for x in xs]) for name in xs[0]}
    return np.stack([np.asarray(x) for x in xs])


def split(chunk: Any, count: int) -> list[Any]:
    """A chunk as its steps: the inverse of `stack`."""
    if isinstance(chunk, Mapping):
        return [{name: values[t] for name, values in chunk.items()} for t in range(count)]
    return [chunk[t, ...] for t in range(count)]


async def _gather(xs: AsyncIterable[Any], window: int) -> AsyncIterator[list[Any]]:
    """Yield what has come since the last time: at least one step, at most `window`; reads on meanwhile."""
    arrived: asyncio.Queue[tuple[Any] | None] = asyncio.Queue()
    room = asyncio.Semaphore(window)

    async def read() -> None:
        try:
            async for x in xs:
                await room.acquire()
                arrived.put_nowait((x,))
        finally:  # also where the source was cancelled: the end needs no room, so it always comes
            arrived.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        item = await arrived.get()
        while item is not None:
            gathered = list(item)
            while not arrived.empty() and (item := arrived.get_nowait()) is not None:
                gathered += item
            for _ in gathered:
                room.release()
            yield gathered
            if item is not None:
                item = await arrived.get()
        await reader  # raises what the source raised
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
