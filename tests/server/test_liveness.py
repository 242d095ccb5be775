"""Which of several processes is stuck."""

import asyncio
import json

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


async def test_none_is_stuck_while_none_answers() -> None:
    """As where the machine was asleep."""
    one, other = Process(well=False), Process(well=False)
    members, stuck = {1: one.peer, 2: other.peer}, asyncio.Queue[int]()
    watching = asyncio.ensure_future(watch(members, 0.3, stuck.put_nowait))
    async with asyncio.timeout(30):
        await one.is_asked(10)
        assert stuck.empty()
        other.well = True
        assert await stuck.get() == 1
        del members[1]  # another has taken its place, and has begun well
        new = Process(well=True)
        members[1] = new.peer
        await new.is_asked(10)
    assert stuck.empty()
    watching.cancel()
    for process in (one, other, new):
        process.listening.cancel()


async def test_one_that_has_ended_is_not_stuck() -> None:
    ended, well = Process(well=False), Process(well=True)
    stuck = asyncio.Queue[int]()
    watching = asyncio.ensure_future(watch({1: ended.peer, 2: well.peer}, 0.3, stuck.put_nowait))
    ended.end()
    async with asyncio.timeout(30):
        await well.is_asked(10)
    assert stuck.empty()
    watching.cancel()
    well.listening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
