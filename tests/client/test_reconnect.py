"""A session goes on over a broken connection as if nothing had been: no step lost, none applied twice."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from recurra_client import Client, DrainingError, Session, SessionNotFoundError, UnavailableError, connect
from recurra_client.connection import FIRST_PAUSE, LONGEST_PAUSE, pauses

from tests.support.proxy import TcpProxy, tcp_proxy
from tests.support.server import ServerProcess, running_server

STEPS = 400
XS = np.random.default_rng(1).integers(-9, 9, (STEPS, 1)).astype(np.float32)
UNINTERRUPTED = np.cumsum(XS, axis=0)


@asynccontextmanager
async def proxied_session(upstream: str) -> AsyncIterator[tuple[TcpProxy, Session]]:
    """A session of the counter over a connection that can be cut."""
    async with tcp_proxy(upstream) as proxy, Client(proxy.target) as client, client.session("counter") as session:
        yield proxy, session


async def open_without_end(client: Client) -> None:
    while True:
        await client.session("counter").open()


@pytest.mark.parametrize("seed", range(3))
async def test_single_steps_over_a_connection_that_is_cut_again_and_again(server: ServerProcess, seed: int) -> None:
    async with proxied_session(server.target) as (proxy, session):
        cut = random.Random(seed)
        outputs = []
        for x in XS:
            proxy.cut_after = cut.randrange(1_000, 8_000)  # in the midst of a reply, as a rule
            outputs.append(await session.step(x))
        assert session.last.step == STEPS
    assert proxy.cuts > 3
    np.testing.assert_array_equal(np.stack(outputs), UNINTERRUPTED)


@pytest.mark.parametrize("window", [1, 7, 32])
async def test_a_stream_over_a_connection_that_is_cut_again_and_again(server: ServerProcess, window: int) -> None:
    async with proxied_session(server.target) as (proxy, session):
        proxy.cut_after = 1_500
        outputs = [y async for y in session.stream(XS, window=window)]
    assert proxy.cuts > 0
    np.testing.assert_array_equal(np.stack(outputs), UNINTERRUPTED)


async def test_many_sessions_of_one_connection(server: ServerProcess) -> None:
    async with tcp_proxy(server.target) as proxy, Client(proxy.target) as client:

        async def run(k: int) -> list[float]:
            async with client.session("counter") as session:
                return [float((await session.step([k]))[0]) for _ in range(50)]

        proxy.cut_after = 30_000
        results = await asyncio.gather(*(run(k) for k in range(16)))
    assert proxy.cuts > 0
    assert results == [[k * n for n in range(1, 51)] for k in range(16)]


async def test_a_lost_reply_is_had_again(server: ServerProcess) -> None:
    async with proxied_session(server.target) as (proxy, session):
        await session.step([1])
        assert not session.last.replayed
        proxy.hold_replies = True
        step = asyncio.create_task(session.step([10]))
        await proxy.held()  # so it has been applied
        proxy.hold_replies = False
        proxy.cut()
        assert (await step).tolist() == [11]
        assert session.last.replayed
        assert session.last.step == 2


async def test_a_server_that_comes_back_in_time_is_waited_for(server: ServerProcess) -> None:
    async with proxied_session(server.target) as (proxy, session):
        await session.step([1])
        await proxy.stop()
        step = asyncio.create_task(session.step([2]))
        with pytest.raises(UnavailableError):  # while it is away, for those who do not wait
            async with Client(proxy.target, reconnect=0) as impatient:
                await impatient.models()
        await proxy.start()
        assert (await step).tolist() == [3]


async def test_an_open_whose_answer_was_lost_opens_once(server: ServerProcess) -> None:
    async with tcp_proxy(server.target) as proxy, Client(proxy.target) as client:
        await client.models()
        before = await client.sessions.count("counter")
        proxy.hold_replies = True
        opening = asyncio.create_task(client.session("counter").open())
        await proxy.held()
        proxy.hold_replies = False
        proxy.cut()
        session = await opening
        assert (await session.step([1])).tolist() == [1]
        assert await client.sessions.count("counter") == before + 1
        await session.close()


async def test_a_close_that_did_not_reach_the_server_can_be_made_again(server: ServerProcess) -> None:
    async with tcp_proxy(server.target) as proxy, Client(proxy.target, reconnect=0) as client:
        session = await client.session("counter").open()
        await session.step([1])
        await proxy.stop()
        with pytest.raises(UnavailableError):
            await session.close()
        await proxy.start()
        async with asyncio.timeout(30):
            while True:
                try:
                    await session.close()
                    break
                except UnavailableError:  # until the channel connects again
                    pass
        with pytest.raises(SessionNotFoundError):
            await client.sessions.get(session.id)
        await session.close()  # no error


async def test_a_session_that_died_with_its_server_is_told_by_one_clear_exception(
    server: ServerProcess, models_folder: Path
) -> None:
    with running_server(models_folder) as doomed:
        async with proxied_session(doomed.target) as (proxy, session):
            await session.step([1])
            doomed.kill()
            proxy.upstream = server.target  # as if started again: it knows nothing of the session
            for _ in range(2):
                with pytest.raises(SessionNotFoundError):
                    await session.step([2])


async def test_a_draining_server_answers_steps_and_opens_no_sessions(models_folder: Path) -> None:
    with running_server(models_folder, "--drain-seconds", "20") as process:
        async with Client(process.target, reconnect=0) as client, client.session("counter") as session:
            await session.step([1])
            process.terminate()
            with pytest.raises((DrainingError, UnavailableError)):
                await open_without_end(client)
            assert (await session.step([2])).tolist() == [3]
        assert process.wait() == 0


def test_the_blocking_client_reconnects_too(server: ServerProcess) -> None:
    loop = asyncio.new_event_loop()
    try:
        proxied = tcp_proxy(server.target)
        proxy = loop.run_until_complete(proxied.__aenter__())
        proxy.cut_after = 2_000

        def stream() -> list[list[float]]:
            with connect(proxy.target) as client, client.session("counter") as session:
                return [session.step(x).tolist() for x in XS]

        outputs = loop.run_until_complete(asyncio.to_thread(stream))
        assert proxy.cuts > 0
        np.testing.assert_array_equal(outputs, UNINTERRUPTED)
        loop.run_until_complete(proxied.__aexit__(None, None, None))
    finally:
        loop.close()


def test_pauses_grow_to_a_bound_and_are_spread_out() -> None:
    longest = [pause for pause, _ in zip(pauses(lambda _, high: high), range(12), strict=False)]
    assert longest[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert longest[-1] == LONGEST_PAUSE
    assert [next(pauses(lambda low, _: low))] == [0]
