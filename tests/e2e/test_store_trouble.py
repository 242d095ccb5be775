"""The store is in trouble under sessions: those that do not wait for it go on, the others say why not, and it ends."""

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from recurra.v1.inference_pb2 import StepRequest
from recurra.v1.sessions_pb2 import GetSessionRequest
from recurra_client import Client, Session, StoreUnavailableError

from tests.support import models
from tests.support.proxy import tcp_proxy
from tests.support.server import ServerProcess, running_server
from tests.support.valkey import ValkeyProcess, running_valkey
from tests.support.wire import Stubs, array_of, error_info, tensor

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    models.publish(root, "counter", models.counter())
    return root


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """What each test leaves in order again."""
    with running_valkey(tmp_path_factory.mktemp("v")) as process:
        yield process


@pytest.fixture(scope="module")
def server(repository: Path, valkey: ValkeyProcess) -> Iterator[ServerProcess]:
    with running_server(repository, "--store", valkey.url) as process:
        yield process


@asynccontextmanager
async def started(repository: Path, store: str) -> AsyncIterator[ServerProcess]:
    """A server whose way to the store is a proxy on this loop."""
    server = await asyncio.to_thread(ServerProcess, repository, "--store", store)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)


class Pair:
    """An ASYNC session and a SYNC one of the same server, through clients that do not wait for it."""

    def __init__(self, server: ServerProcess, client: Client, going_on: Session, waiting: Session) -> None:
        self.server = server
        self.client = client
        self.going_on = going_on
        self.waiting = waiting
        self._told: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._watch = health_pb2_grpc.HealthStub(grpc.insecure_channel(server.target)).Watch(
            health_pb2.HealthCheckRequest(service="recurra.store")
        )

    async def until_health_says(self, status: "health_pb2.HealthCheckResponse.ServingStatus.ValueType") -> None:
        """Read what the health service tells of the store."""
        while (await asyncio.to_thread(next, self._watch)).status != status:
            pass

    async def see_that_it_is_away(self, why: str) -> None:
        """Steps go on in ASYNC and stand still; in SYNC they are refused; and everybody is told."""
        await self.going_on.step([1])
        changed = time.monotonic()
        while self.server.metrics().get("recurra_store_up"):
            await self.going_on.step([1])
            self.see_how_long_it_is_not_durable(changed)
        await self.until_health_says(health_pb2.HealthCheckResponse.NOT_SERVING)
        before = self.going_on.last
        for _ in range(100):
            await self.going_on.step([1])
        assert self.going_on.last.step == before.step + 100
        assert self.going_on.last.durable_step == before.durable_step < before.step
        self.see_how_long_it_is_not_durable(changed)
        with pytest.raises(StoreUnavailableError, match=f"{why}.*not applied: send it again"):
            await self.waiting.step([10])
        assert (await self.waiting.info()).steps == 1
        with pytest.raises(StoreUnavailableError, match=f"{why}; try again later"):
            await self.client.session("counter").open()

    def see_how_long_it_is_not_durable(self, changed: float) -> None:
        """Something has changed then or before, and has not been saved since: also while the store is tried."""
        now = time.monotonic()
        lag = self.server.metrics().get("recurra_durable_lag_seconds")
        assert lag is not None
        assert lag >= now - changed

    async def see_that_it_is_back(self) -> None:
        """All is durable again, and nothing was lost or doubled."""
        await self.until_health_says(health_pb2.HealthCheckResponse.SERVING)
        assert self.server.metrics().get("recurra_store_up") == 1
        while self.going_on.last.durable_step < self.going_on.last.step - 1:
            count = self.going_on.last.step
            assert (await self.going_on.step([1])).tolist() == [count + 1]
        assert (await self.waiting.step([100])).tolist() == [111], "the step that was refused stayed in line"
        assert self.waiting.last.durable_step == 3


@asynccontextmanager
async def pair(server: ServerProcess) -> AsyncIterator[Pair]:
    async with Client(server.target, reconnect=0) as client:
        going_on = await client.session("counter", durability="async").open()
        waiting = await client.session("counter", durability="sync").open()
        assert (await waiting.step([1])).tolist() == [1]
        await going_on.step([1])
        yield Pair(server, client, going_on, waiting)


async def test_killed(server: ServerProcess, valkey: ValkeyProcess) -> None:
    async with pair(server) as them:
        await asyncio.to_thread(valkey.kill)
        await them.see_that_it_is_away("cannot be reached")
        await asyncio.to_thread(valkey.start)
        await them.see_that_it_is_back()


async def test_standing_still(server: ServerProcess, valkey: ValkeyProcess) -> None:
    async with pair(server) as them:
        valkey.stop()
        await them.see_that_it_is_away("cannot be reached")
        valkey.go_on()
        await them.see_that_it_is_back()


async def test_full(server: ServerProcess, valkey: ValkeyProcess) -> None:
    async with pair(server) as them:
        valkey.client.config_set("maxmemory", 1)
        await them.see_that_it_is_away("is full")
        valkey.client.config_set("maxmemory", 0)
        await them.see_that_it_is_back()


async def test_paused_for_five_seconds_a_caller_who_waits_sees_only_a_pause(
    server: ServerProcess, valkey: ValkeyProcess
) -> None:
    async with Client(server.target) as client:
        waiting = await client.session("counter", durability="sync").open()
        going_on = await client.session("counter", durability="async").open()
        await waiting.step([1])
        valkey.client.execute_command("CLIENT", "PAUSE", 5000, "ALL")
        behind = asyncio.create_task(waiting.step([10]))
        steps = 0
        while not behind.done():
            await going_on.step([1])
            steps += 1
        assert (await behind).tolist() == [11]
        assert waiting.last.durable_step == 2
        assert steps > 100
        assert (await going_on.step([1])).tolist() == [steps + 1]


@pytest.mark.parametrize("unnoticed", [True, False])
async def test_started_again_empty_it_gets_what_does_not_change_too(
    repository: Path, server: ServerProcess, valkey: ValkeyProcess, unnoticed: bool
) -> None:
    name = f"unnoticed-{unnoticed}"
    async with pair(server) as them, Client(server.target) as client:
        still = [await client.session("counter", session_id=f"{name}-{n}").open() for n in range(300)]
        for session in still[:5]:
            await session.step([7])
        while (await still[4].info()).durable_step < 1:
            pass
        await asyncio.to_thread(valkey.kill)
        if not unnoticed:
            await them.see_that_it_is_away("cannot be reached")
        await asyncio.to_thread(valkey.start)
        while len(valkey.client.keys(f"recurra:session:{name}-*")) < 300:
            pass
        async with started(repository, valkey.url) as other, Client(other.target) as elsewhere:
            async with elsewhere.resume(f"{name}-4") as session:
                assert (await session.step([1])).tolist() == [8]
            async with elsewhere.resume(f"{name}-299") as session:
                assert (await session.step([1])).tolist() == [1]


async def test_a_server_that_writes_nothing_knows_when_it_is_back(server: ServerProcess, valkey: ValkeyProcess) -> None:
    async with Client(server.target, reconnect=0) as client:
        waiting = await client.session("counter", durability="sync").open()
        await asyncio.to_thread(valkey.kill)
        with pytest.raises(StoreUnavailableError):
            await client.session("counter").open()
        with pytest.raises(StoreUnavailableError, match="not applied"):
            await waiting.step([1])
        await asyncio.to_thread(valkey.start)
        while not server.metrics().get("recurra_store_up"):
            pass
        assert (await waiting.step([2])).tolist() == [3]


async def test_slow_it_holds_up_only_those_who_wait_for_it(repository: Path, valkey: ValkeyProcess) -> None:
    async with tcp_proxy(valkey.target) as slow:
        slow.delay = 0.05
        async with started(repository, f"valkey://{slow.target}") as server, pair(server) as them:
            for number in range(2, 6):
                behind = asyncio.create_task(them.waiting.step([1]))
                others = 0
                while not behind.done():
                    await them.going_on.step([1])
                    others += 1
                assert (await behind).tolist() == [number]
                assert them.waiting.last.durable_step == number
                assert others > 5
            while them.going_on.last.durable_step < 10:
                await them.going_on.step([1])
            assert server.metrics().get("recurra_store_up") == 1


@pytest.mark.parametrize("durability", ["async", "sync"])
@pytest.mark.parametrize("replies_only", [False, True])
async def test_cut_off_from_one_of_two_servers_only_the_other_commits(
    repository: Path, valkey: ValkeyProcess, durability: Any, replies_only: bool
) -> None:
    async with (
        tcp_proxy(valkey.target) as network,
        started(repository, f"valkey://{network.target}") as cut_off,
        started(repository, valkey.url) as other,
    ):
        here, there = Stubs(cut_off.target), Stubs(other.target)
        async with Client(cut_off.target) as client:
            session = await client.session("counter", session_id="s", durability=durability).open()
            await session.step([1])
            while (await session.info()).durable_step < 1:
                pass
            if replies_only:
                network.hold_replies = True
            else:
                await network.stop()
            applied_here = await asyncio.to_thread(step_on, here, 2, 10.0, patience=1)
            if durability == "async":
                assert applied_here == 11.0
            else:
                assert applied_here is None, "it waits, or is refused"
            # The caller goes to the other server, which lacks what was not saved.
            assert await asyncio.to_thread(step_on, there, 2, 10.0) == 11.0
            assert await asyncio.to_thread(step_on, there, 3, 100.0) == 111.0
            # Another who still meets the first one: what it is answered there is never saved.
            await asyncio.to_thread(step_on, here, 3, 100.0, patience=1)
            if durability == "async":  # it cannot know whether a step that does not fit was applied by another
                for call in (
                    lambda: here.inference.Step(StepRequest(session_id="s", step=5, inputs=[tensor([1])]), timeout=20),
                    lambda: here.sessions.GetSession(GetSessionRequest(session_id="s", after_step=4), timeout=20),
                ):
                    with pytest.raises(grpc.RpcError) as refused:
                        await asyncio.to_thread(call)
                    assert error_info(refused.value).reason == "STORE_UNAVAILABLE"
            network.hold_replies = False
            if not replies_only:
                await network.start()
            while not cut_off.metrics().get("recurra_checkpoints_total", outcome="stale"):
                await client.models()
            assert other.metrics().get("recurra_checkpoints_total", outcome="stale") == 0
            assert await asyncio.to_thread(step_on, there, 4, 1000.0) == 1111.0
            while (await asyncio.to_thread(durable_step, there)) < 4:
                pass
            assert (await session.info()).steps == 4, "the first one has taken it over again"
            await session.close()


def step_on(stubs: Stubs, number: int, x: float, *, patience: float = 20) -> float | None:
    """Send a step until it is answered; None where the store is not there to save it."""
    request = StepRequest(session_id="s", step=number, inputs=[tensor([x])])
    while True:
        try:
            return float(array_of(stubs.inference.Step(request, timeout=patience).result.outputs[0]).item())
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED or error_info(error).reason == "STORE_UNAVAILABLE":
                return None
            if error_info(error).reason != "SESSION_MOVED":
                raise


def durable_step(stubs: Stubs) -> int:
    return int(stubs.sessions.GetSession(GetSessionRequest(session_id="s"), timeout=20).session.durable_step)
