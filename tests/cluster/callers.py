"""Callers who make every kind of call, one after the other: none may fail."""

import asyncio
import itertools

import numpy as np
from recurra_client import Client

from tests.cluster.traffic import Durability, inputs

STEPS = 6


class Callers:
    """Opens sessions, uses them in all ways and closes them, until it is told to end.

    Attributes:
        calls: How many calls were answered.
    """

    def __init__(self, target: str, durability: Durability, count: int = 2) -> None:
        self.calls = 0
        self._target = target
        self._durability = durability
        self._count = count
        self._ending = False

    def end(self) -> None:
        """Finish what was begun."""
        self._ending = True

    async def run(self) -> None:
        """Call until the end."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._call_on(number))

    async def _call_on(self, number: int) -> None:
        async with Client(self._target, timeout=60, reconnect=60) as client:
            for turn in itertools.count():
                if self._ending:
                    return
                await self._call_once(client, 1000 * number + turn)

    async def _call_once(self, client: Client, seed: int) -> None:
        xs = inputs(seed, STEPS)
        expected = await client.predict("lstm", xs)
        async with client.session("lstm", durability=self._durability) as session:
            half = STEPS // 2
            first = await session.steps(xs[:half])
            async with await session.fork() as fork:
                for branch in (session, fork):
                    rest = await branch.steps(xs[half:])
                    np.testing.assert_allclose(np.concatenate([first, rest]), expected, atol=1e-5)
            assert (await session.info()).steps == STEPS
            snapshot = await session.export()
            copy = client.resume((await client.sessions.import_(snapshot)).session_id, keep=False)
            async with copy:
                assert (await copy.info()).steps == STEPS
            await session.reset()
            np.testing.assert_allclose(await session.steps(xs), expected, atol=1e-5)
        self.calls += 12
