"""Servers are killed under sessions that do not notice: no step is lost, none is applied twice."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from recurra_client import Client, InputError, SessionLostError

from tests.support import models
from tests.support.server import ServerProcess

SESSIONS = 12
KILLS = 3
STEPS_BETWEEN = 300  # of all sessions


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    models.publish(root, "counter", models.counter(feedback={"output": "y", "input": "x"}))
    return root


@dataclass
class Replicas:
    """Servers with one store, each on a port that it keeps."""

    repository: Path
    store: Path
    interval: float
    servers: list[ServerProcess] = field(default_factory=list)

    async def start(self, port: int = 0) -> ServerProcess:
        """Start one."""
        store = ("--store", f"embedded:{self.store}", "--checkpoint-interval", str(self.interval))
        options = (*store, "--drain-seconds", "1")
        return await asyncio.to_thread(ServerProcess, self.repository, *options, port=port)

    async def replace(self, place: int, *, kill: bool) -> None:
        """End one, and start it again."""
        old = self.servers[place]
        await asyncio.to_thread(old.kill if kill else old.stop)
        self.servers[place] = await self.start(int(old.target.rpartition(":")[2]))

    def target(self, first: int) -> str:
        """Addresses that are tried one after the other."""
        return "ipv4:" + ",".join(server.target for server in self.servers[first:] + self.servers[:first])


@asynccontextmanager
async def replicas(repository: Path, store: Path, count: int, interval: float = 0.05) -> AsyncIterator[Replicas]:
    them = Replicas(repository, store, interval)
    them.servers = list(await asyncio.gather(*(them.start() for _ in range(count))))
    try:
        yield them
    finally:
        await asyncio.gather(*(asyncio.to_thread(server.stop) for server in them.servers))


class Traffic:
    """Sessions that are stepped without a pause until they are told to end."""

    def __init__(self, them: Replicas, durability: Literal["async", "sync"]) -> None:
        self.steps = 0
        self.ending = False
        self._more = asyncio.Condition()
        self._them = them
        self._durability = durability

    async def run(self, number: int) -> None:
        """One session: every output is that of an uninterrupted run."""
        rng = np.random.default_rng(number)
        total = 0
        async with (
            Client(self._them.target(number % len(self._them.servers)), timeout=60, reconnect=60) as client,
            client.session("counter", durability=self._durability) as session,
        ):
            count = 0
            while not self.ending:
                x = rng.integers(-9, 9, (int(rng.integers(1, 4)), 1))
                outputs = await session.steps(x)
                np.testing.assert_array_equal(outputs, total + np.cumsum(x, axis=0))
                total, count = total + int(x.sum()), count + len(x)
                assert session.last.step == count
                if self._durability == "sync":
                    assert session.last.durable_step == count
                async with self._more:
                    self.steps += 1
                    self._more.notify_all()

    async def further(self, steps: int) -> None:
        """Wait until so many more steps were answered."""
        until = self.steps + steps
        async with self._more:
            await self._more.wait_for(lambda: self.steps >= until)


@pytest.mark.e2e
@pytest.mark.parametrize(("durability", "kill"), [("sync", True), ("async", False)])
async def test_sessions_do_not_notice_that_their_server_ends(
    repository: Path, tmp_path: Path, durability: Literal["async", "sync"], kill: bool
) -> None:
    chosen = random.Random(1)
    async with replicas(repository, tmp_path, 2) as them:
        traffic = Traffic(them, durability)
        async with asyncio.TaskGroup() as group:
            for number in range(SESSIONS):
                group.create_task(traffic.run(number))
            for _ in range(KILLS):
                await traffic.further(STEPS_BETWEEN)
                await them.replace(chosen.randrange(2), kill=kill)
            await traffic.further(STEPS_BETWEEN)
            traffic.ending = True


@pytest.mark.e2e
async def test_a_session_whose_steps_are_nowhere_any_more_is_told_by_one_clear_exception(
    repository: Path, tmp_path: Path
) -> None:
    async with replicas(repository, tmp_path, 1) as them, Client(them.target(0)) as client:
        session = await client.session("counter", session_id="a").open()
        await session.step([1])
        async with Client(them.target(0)) as other:
            snapshot = await other.sessions.export("a")
            while session.last.durable_step < 2:
                await session.step([1])
            await other.sessions.rewind("a", snapshot)  # as if the store had lost its newest writes
        for _ in range(2):
            with pytest.raises(SessionLostError, match="back at step 1"):
                await session.step([1])


@pytest.mark.e2e
async def test_a_session_that_was_stepped_and_then_generated_from_goes_on(repository: Path, tmp_path: Path) -> None:
    """The steps of a generation have no numbers; and one that fails leaves open how many there are."""
    async with (
        replicas(repository, tmp_path, 1, interval=60) as them,
        Client(them.target(0)) as client,
        client.session("counter", session_id="a") as session,
    ):
        await session.step([1])
        assert [one.output.item() async for one in client.generate(session, [[2]], max_steps=2)] == [3, 6]
        copy = await client.sessions.import_(await client.sessions.export("a"))
        assert await session.step([4]) == 10
        with pytest.raises(InputError):
            await anext(client.generate(session, [[1, 2]], max_steps=1))
        await them.replace(0, kill=True)
        assert await session.step([10]) == 20
        assert session.last.step == 5
        async with client.resume(copy.session_id) as again:
            assert await again.step([20]) == 26
