"""What becomes of calls whose answer does not come, or that nobody waits for any more."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from recurra_client import Client, DeadlineExceededError, RecurraError, Session, UnavailableError
from recurra_client.delivery import MAX_UNANSWERED

from tests.client.conftest import total
from tests.support.proxy import tcp_proxy
from tests.support.server import ServerProcess


async def when_reachable(call: Callable[[], Coroutine[Any, Any, Session]]) -> Session:
    """Call until it succeeds, as one does who does not let the client wait."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(DeadlineExceededError, UnavailableError):
                return await call()


async def test_cancelling_a_step_leaves_it_in_the_sequence(client: Client) -> None:
    async with client.session("counter") as session:
        called = 0
        for turns in range(40):
            task = asyncio.create_task(session.step([1]))
            for _ in range(turns % 8):  # so many turns of the event loop does it get
                await asyncio.sleep(0)
            called += turns % 8 > 0
            task.cancel()
            await asyncio.wait([task])
        assert await total(session) == called
        assert session.last.step == called + 1


async def test_cancelled_steps_leave_no_streams_behind(server: ServerProcess) -> None:
    async with Client(server.target) as client, client.session("counter") as session:
        for _ in range(50):
            task = asyncio.create_task(session.step([1]))
            for _ in range(6):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert await total(session) == 50
        async with asyncio.timeout(10):
            streams = None
            while streams != 1:
                streams = (await asyncio.to_thread(server.metrics)).get("recurra_streams")
    assert len(asyncio.all_tasks()) == 1


async def test_no_server_is_told_at_once_or_after_the_time_to_reconnect() -> None:
    async with tcp_proxy("127.0.0.1:1") as proxy:
        await proxy.stop()
        async with Client(proxy.target, reconnect=0) as client:
            with pytest.raises(UnavailableError, match=r"^cannot reach 127\.0\.0\.1:\d+: "):
                await client.models()
        async with Client(proxy.target, reconnect=0.3) as client:
            with pytest.raises(UnavailableError, match="tried for"):
                await client.models()
        async with Client(proxy.target, timeout=0.3) as client:
            with pytest.raises(UnavailableError, match="tried for"):
                await client.models()


async def test_a_step_that_times_out_stays_in_the_sequence(server: ServerProcess) -> None:
    async with (
        tcp_proxy(server.target) as proxy,
        Client(proxy.target, timeout=0.2) as client,
        client.session("counter") as session,
    ):
        assert await total(session, 1) == 1
        proxy.hold_replies = True
        with pytest.raises(DeadlineExceededError, match=r"within 0\.2 s"):
            await session.step([10])
        with pytest.raises(DeadlineExceededError):
            await session.step([100])
        proxy.hold_replies = False
        proxy.cut()  # what was swallowed is missing from the connection
        async with await when_reachable(session.fork) as fork:
            assert await total(fork) == 111


async def test_a_reset_that_nobody_waits_for_stays_in_the_sequence(server: ServerProcess) -> None:
    async with (
        tcp_proxy(server.target) as proxy,
        Client(proxy.target) as client,
        client.session("counter") as session,
    ):
        assert await total(session, 1) == 1
        await proxy.stop()
        reset = asyncio.create_task(session.reset())
        await asyncio.sleep(0)  # it is called
        reset.cancel()
        await asyncio.wait([reset])
        await proxy.start()
        assert await total(session, 100) == 100
        assert session.last.step == 1


async def test_steps_that_wait_are_bounded(server: ServerProcess) -> None:
    async with (
        tcp_proxy(server.target) as proxy,
        Client(proxy.target, reconnect=0) as client,
        client.session("counter") as session,
    ):
        await session.step([1])
        await proxy.stop()
        refused: set[str] = set()
        for _ in range(MAX_UNANSWERED + 1):
            with pytest.raises(RecurraError) as caught:
                await session.step([1])
            refused.add(caught.value.reason)
        assert refused == {"UNAVAILABLE", "CAPACITY"}
        await proxy.start()
        async with await when_reachable(session.fork):  # the line is worked off first; a step more had no place in it
            assert await total(session) == MAX_UNANSWERED + 1
