"""Cutting sequences into messages."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recurra_client.errors import invalid_input
from recurra_client.feed import chunks, run_feed, split, stack


class Sum:
    """What a session of a running sum does, and how often it was sent something."""

    def __init__(self) -> None:
        self.total = 0.0
        self.messages: list[int] = []

    async def step(self, x: Any) -> Any:
        self.messages.append(1)
        for _ in range(10):  # the network takes its time
            await asyncio.sleep(0)
        if np.isnan(x).any():
            raise invalid_input("not finite", "INPUT_NOT_FINITE")
        self.total += float(np.sum(x))
        return np.array([self.total])

    async def steps(self, xs: Any) -> Any:
        self.messages.append(len(xs))
        if np.isnan(xs).any():
            raise invalid_input("not finite", "INPUT_NOT_FINITE")
        sums = self.total + np.cumsum(xs, axis=0)
        self.total = float(sums[-1, 0])
        return sums


async def outputs_of(session: Sum, xs: Any, window: int) -> tuple[list[float], Exception | None]:
    outputs: list[float] = []
    async for answered, error in run_feed(session.step, session.steps, xs, window):
        outputs += [float(y[0]) for y in answered]
        if error is not None:
            return outputs, error
    return outputs, None


@given(st.lists(st.integers(-9, 9), max_size=40), st.integers(1, 9))
async def test_a_sequence_gives_the_same_whatever_the_window(values: list[int], window: int) -> None:
    expected = np.cumsum(values).tolist()
    array = np.array(values, float).reshape(-1, 1)
    for xs in (array, list(array), array.tolist(), iter(array)):
        assert await outputs_of(Sum(), xs, window) == (expected, None)


@given(st.integers(0, 12), st.integers(1, 5))
async def test_a_bad_step_ends_the_sequence_after_all_before_it(bad: int, window: int) -> None:
    values = np.ones((13, 1))
    values[bad] = np.nan
    outputs, error = await outputs_of(Sum(), values, window)
    assert outputs == list(range(1, bad + 1))
    assert isinstance(error, ValueError)


async def test_an_array_travels_in_chunks_and_an_iterator_step_by_step() -> None:
    session = Sum()
    await outputs_of(session, np.ones((10, 1)), 4)
    assert session.messages == [4, 4, 2]
    session = Sum()
    await outputs_of(session, iter(np.ones((3, 1))), 4)
    assert session.messages == [1, 1, 1]


async def test_what_comes_while_a_step_is_on_its_way_travels_together() -> None:
    session = Sum()

    async def burst() -> AsyncIterator[np.ndarray[Any, Any]]:
        for _ in range(10):
            yield np.ones(1)

    assert await outputs_of(session, burst(), 4) == (list(range(1, 11)), None)
    assert sum(session.messages) == 10
    assert max(session.messages) == 4


async def test_an_error_of_the_source_comes_after_the_outputs_before_it() -> None:
    session = Sum()

    async def breaks() -> AsyncIterator[np.ndarray[Any, Any]]:
        yield np.ones(1)
        yield np.ones(1)
        raise OSError("the sensor is gone")

    answers = run_feed(session.step, session.steps, breaks(), 8)
    outputs, error = await anext(answers)
    assert ([float(y[0]) for y in outputs], error) == ([1, 2], None)
    with pytest.raises(OSError, match="sensor"):
        await anext(answers)


async def test_a_source_that_is_cancelled_ends_the_sequence() -> None:
    """As one does that waits for a task, or for a client that was closed."""
    session = Sum()

    async def breaks() -> AsyncIterator[np.ndarray[Any, Any]]:
        yield np.ones(1)
        raise asyncio.CancelledError

    async def read() -> None:
        async for answered, _ in run_feed(session.step, session.steps, breaks(), 8):
            outputs.extend(answered)

    outputs: list[Any] = []
    async with asyncio.timeout(20):
        (end,) = await asyncio.gather(asyncio.create_task(read()), return_exceptions=True)
    assert isinstance(end, asyncio.CancelledError)
    assert session.messages == [1]
    assert len(outputs) == 1


def test_split_undoes_stack() -> None:
    steps = [np.full((2, 3), t) for t in range(4)]
    assert all((a == b).all() for a, b in zip(split(stack(steps), 4), steps, strict=True))
    named = [{"x": np.full(2, t), "k": np.array(t)} for t in range(3)]
    for before, after in zip(named, split(stack(named), 3), strict=True):
        assert after.keys() == before.keys()
        assert all((after[name] == before[name]).all() for name in before)


def test_a_dict_of_arrays_is_cut_along_time() -> None:
    cut = list(chunks({"x": np.zeros((5, 2)), "k": [0, 1, 2, 3, 4]}, 2))
    assert [len(chunk) for chunk in cut] == [2, 2, 1]
    assert [int(step["k"]) for chunk in cut for step in chunk] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="different lengths"):
        list(chunks({"x": np.zeros((5, 2)), "k": [0]}, 2))
