"""Which of several processes is stuck."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from recurra_server.liveness import watch
from recurra_server.peer import Peer


class Process:
    """One at the other end of a pipe.

    Attributes:
        well: Whether it answers.
        peer: As the other end knows it.
        asked: Is set with each question.
    """

    def __init__(self, *, well: bool) -> None:
        self.well = well
        self.asked = asyncio.Event()
        self._lines = asyncio.StreamReader()
        self.peer = Peer(self._lines, self._take_in)
        self.listening = asyncio.ensure_future(self.peer.listen())

    def _take_in(self, line: bytes) -> None:
        self.asked.set()
        if self.well:
            self._lines.feed_data(json.dumps({"answer": json.loads(line)["ask"], "facts": {}}).encode() + b"\n")

    def end(self) -> None:
        """Say no more."""
        self._lines.feed_eof()

    async def is_asked(self, times: int) -> None:
        """Wait until it has been asked so often."""
        for _ in range(times):
            self.asked.clear()
            await self.asked.wait()


@asynccontextmanager
async def watching(processes: dict[int, Process]) -> AsyncIterator[tuple[dict[int, Peer], asyncio.Queue[int]]]:
    """Look after processes: they by their places, and which of them are stuck."""
    members, stuck = {place: process.peer for place, process in processes.items()}, asyncio.Queue[int]()
    task = asyncio.ensure_future(watch(members, 0.3, stuck.put_nowait))
    async with asyncio.timeout(30):
        yield members, stuck
    task.cancel()
    for process in processes.values():
        process.listening.cancel()


async def test_one_that_does_not_answer_is_stuck() -> None:
    processes = {1: Process(well=False), 2: Process(well=True)}
    async with watching(processes) as (members, stuck):
        assert await stuck.get() == 1
        processes[3] = new = Process(well=True)  # has taken its place, and has begun well
        members[1] = new.peer
        await new.is_asked(10)
        assert stuck.empty()


async def test_all_can_be_stuck() -> None:
    async with watching({1: Process(well=False), 2: Process(well=False)}) as (_, stuck):
        assert {await stuck.get(), await stuck.get()} == {1, 2}


async def test_none_is_stuck_while_this_process_is_late_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the machine was asleep, or has too much to do."""
    loop = asyncio.get_running_loop()
    silent, clock = Process(well=False), loop.time
    async with watching({1: silent}) as (_, stuck):
        for _ in range(10):
            await silent.is_asked(1)
            late = loop.time() - clock() + 1
            monkeypatch.setattr(loop, "time", lambda late=late: clock() + late)
        assert stuck.empty()
        assert await stuck.get() == 1, "in time it is"


async def test_one_that_has_ended_is_not_stuck() -> None:
    ended, well = Process(well=False), Process(well=True)
    async with watching({1: ended, 2: well}) as (_, stuck):
        ended.end()
        await well.is_asked(10)
        assert stuck.empty()
