"""Generation by the asyncio client and a real server."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from recurra_client import Client, DeadlineExceededError, NoFeedbackError

from tests.support.server import ServerProcess


async def test_generating_feeds_outputs_back(client: Client) -> None:
    alone = [g async for g in client.generate("letters", [0, 3], max_steps=6, temperature=1.0, seed=7)]
    assert [g.step for g in alone] == [2, 3, 4, 5, 6, 7]
    again = [g async for g in client.generate("letters", [0, 3], max_steps=6, temperature=1.0, seed=7)]
    assert [int(g.next_input) for g in again] == [int(g.next_input) for g in alone]
    async with client.session("letters") as session:
        await session.step(0)
        in_session = [g async for g in client.generate(session, [3], max_steps=6, temperature=1.0, seed=7)]
        assert [int(g.next_input) for g in in_session] == [int(g.next_input) for g in alone]
        steps = (await session.info()).steps
        await session.step(1)
        assert session.last.step == steps + 1
    with pytest.raises(NoFeedbackError):
        await anext(client.generate("counter", [[1]], max_steps=2))


async def test_a_generation_can_be_left_early(client: Client) -> None:
    async with client.session("letters") as session:
        for _ in range(30):  # the server may have a step under way still
            generation = client.generate(session, [1], max_steps=4000)
            first = await anext(generation)
            await generation.aclose()
            await session.step(1)
            assert session.last.step > first.step


async def test_what_waits_for_a_generation_ends_in_time_and_says_so(server: ServerProcess) -> None:
    async with Client(server.target, timeout=0.5) as hasty, hasty.session("watched") as session:
        generation = hasty.generate(session, [[0]], max_steps=10)
        await anext(generation)
        again = hasty.generate(session, [[0]], max_steps=1)
        calls: list[Awaitable[Any]] = [session.fork(), session.export(), session.step([0]), session.reset()]
        for end in await asyncio.gather(*calls, anext(again), return_exceptions=True):
            assert isinstance(end, DeadlineExceededError)
            assert "held by a generation" in str(end)
        await generation.aclose()
        async with await session.fork() as fork:  # and the step and the reset stayed in the sequence
            assert (await fork.info()).steps == 0


async def test_a_generation_that_is_left_has_been_cancelled_when_the_next_call_begins(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    stub: Any = client._connection.inference
    begin = stub.Generate

    def generate(*args: Any, **kwargs: Any) -> Any:
        calls.append(begin(*args, **kwargs))
        return calls[-1]

    monkeypatch.setattr(stub, "Generate", generate)
    async with client.session("letters") as session:
        for start in (session, "letters"):
            generation = client.generate(start, [1], max_steps=4000)
            await anext(generation)
            await generation.aclose()
            assert calls.pop().cancelled()
        await session.reset()
        for number in (1, 2, 3):
            await session.step(1)
            assert session.last.step == number
