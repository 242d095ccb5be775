"""Chores: what fails once is begun again."""

import asyncio

import pytest
from recurra_server.chores import Chores


async def test_a_chore_that_fails_is_logged_and_begun_again(capsys: pytest.CaptureFixture[str]) -> None:
    begun, again = 0, asyncio.Event()

    async def chore() -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise RuntimeError("a bug")
        again.set()
        await asyncio.Event().wait()

    chores = Chores(pause=0.0)
    chores.begin(chore)
    await asyncio.wait_for(again.wait(), 10)
    assert begun == 2
    assert "chore_failed" in capsys.readouterr().out
    await chores.end()


async def test_a_chore_ends_though_it_loses_a_cancellation() -> None:
    running, lost = asyncio.Event(), asyncio.Event()

    async def chore() -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if lost.is_set():
                raise
            lost.set()
            await asyncio.Event().wait()

    chores = Chores()
    chores.begin(chore)
    await running.wait()
    await asyncio.wait_for(chores.end(), 10)
    assert lost.is_set()
