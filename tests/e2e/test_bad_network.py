"""A proxy loses replies, repeats requests and cuts connections: every step is applied exactly once all the same."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from recurra.v1 import sessions_pb2
from recurra.v1.inference_pb2 import StepBatchRequest, StepResult
from recurra_client import (
    Client,
    DeadlineExceededError,
    SessionMovedError,
    StepGapError,
    StepNotHeldError,
    UnavailableError,
)

from tests.support import models
from tests.support.raw_stubs import Refused, SteppedOnce
from tests.support.rpc_proxy import MISCHIEF, RpcProxy, rpc_proxy
from tests.support.server import running_server
from tests.support.wire import Stream, array_of, tensor

pytestmark = pytest.mark.e2e

SESSIONS: Final = 5
ROUNDS: Final = 10  # the most
KINDS: Final = ("reply lost", "repeated", "repeated late", "connection cut")
STEPS: Final = 60
CHANNEL: Final = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100)]
DURABILITIES: Final = {
    "": sessions_pb2.DURABILITY_UNSPECIFIED,
    "async": sessions_pb2.DURABILITY_ASYNC,
    "sync": sessions_pb2.DURABILITY_SYNC,
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    models.publish(root, "counter", models.counter())
    return root


@pytest.fixture(scope="module")
def alone(repository: Path) -> Iterator[list[str]]:
    """A server without a store."""
    with running_server(repository) as server:
        yield [server.target]


@pytest.fixture(scope="module")
def replicas(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Two servers with one store."""
    store = ("--store", f"embedded:{tmp_path_factory.mktemp('v')}")
    with running_server(repository, *store) as one, running_server(repository, *store) as two:
        yield [one.target, two.target]


@pytest.fixture(params=["alone", "async", "sync"])
def servers(request: pytest.FixtureRequest) -> tuple[list[str], Any]:
    """Addresses, and the durability of the sessions there."""
    if request.param == "alone":
        return request.getfixturevalue("alone"), ""
    return request.getfixturevalue("replicas"), request.param


def readings(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).integers(-9, 9, (STEPS, 1)).astype(np.float32)


def check(proxy: RpcProxy) -> None:
    """There was trouble of every kind."""
    assert [kind for kind in KINDS if not proxy.happened[kind]] == []


# --- through the client --------------------------------------------------------------------


async def by_steps(session: Any, xs: NDArray[np.float32]) -> list[NDArray[Any]]:
    return [await session.step(x) for x in xs]


async def by_chunks(session: Any, xs: NDArray[np.float32]) -> list[NDArray[Any]]:
    cuts = np.cumsum(np.random.default_rng(0).integers(1, 4, STEPS))
    return [y for chunk in np.split(xs, cuts[cuts < STEPS]) for y in await session.steps(chunk)]


async def by_stream(session: Any, xs: NDArray[np.float32]) -> list[NDArray[Any]]:
    return [y async for y in session.stream(xs, window=3)]


@pytest.mark.parametrize("way", [by_steps, by_chunks, by_stream])
async def test_through_the_client(servers: tuple[list[str], Any], way: Any) -> None:
    targets, durability = servers
    async with rpc_proxy(targets, seed=1) as proxy:

        async def run(seed: int) -> None:
            xs = readings(seed)
            async with (
                Client(proxy.target, timeout=60, reconnect=60) as client,
                client.session("counter", durability=durability) as session,
            ):
                np.testing.assert_array_equal(np.stack(await way(session, xs)), np.cumsum(xs, axis=0))
                assert session.last.step == STEPS

        for _ in range(ROUNDS):  # a stream has few messages: what befalls them may lack a kind
            async with asyncio.TaskGroup() as group:
                for seed in range(SESSIONS):
                    group.create_task(run(seed))
            if all(proxy.happened[kind] for kind in KINDS):
                break
        check(proxy)


async def insist(call: Any) -> None:
    """Call until there is an answer."""
    while True:
        try:
            await call()
        except (DeadlineExceededError, UnavailableError):
            continue
        return


async def test_what_the_client_gave_up_waiting_for_is_applied_once_too(servers: tuple[list[str], Any]) -> None:
    """Some replies never come: the caller goes on with the next reading, as docs/client.md says."""
    targets, durability = servers
    async with rpc_proxy(targets, seed=2, mischief={**MISCHIEF, "silence": 0.03}) as proxy:

        async def run(seed: int) -> None:
            async with (
                Client(proxy.target, timeout=1) as client,
                Client(targets[0], timeout=60) as beside,
                beside.session("counter", durability=durability) as opened,
            ):
                session = client.resume(opened.id)
                await insist(session.open)
                total = count = 0
                for x in readings(seed)[:, 0]:
                    total, count = total + x, count + 1
                    try:
                        assert (await session.step([x])).tolist() == [total]
                    except (DeadlineExceededError, UnavailableError):
                        continue
                    assert session.last.step == count

        async with asyncio.TaskGroup() as group:
            for seed in range(SESSIONS):
                group.create_task(run(seed))
        assert proxy.happened["silence"] > 1


async def test_batches_through_the_client(servers: tuple[list[str], Any]) -> None:
    """A gateway: a row that was not answered is sent again with its number, and so is what a server lacks."""
    targets, durability = servers
    async with (
        rpc_proxy(targets, seed=3) as proxy,
        Client(proxy.target, timeout=60, reconnect=60) as client,
    ):
        ids = [(await client.session("counter", durability=durability).open()).id for _ in range(SESSIONS)]
        xs = np.stack([readings(seed) for seed in range(SESSIONS)])
        sums = np.cumsum(xs, axis=1)
        position, answered = [0] * SESSIONS, [0] * SESSIONS  # steps that the server has; that were answered
        while min(answered) < STEPS:
            rows = [row for row in range(SESSIONS) if answered[row] < STEPS]
            numbers = [position[row] + 1 for row in rows]
            x = np.stack([xs[row, number - 1] for row, number in zip(rows, numbers, strict=True)])
            result = await client.step_batch("counter", [ids[row] for row in rows], x, steps=numbers)
            for place, (row, number) in enumerate(zip(rows, numbers, strict=True)):
                error = result.errors.get(place)
                if error is None:
                    assert result.outputs[place].tolist() == sums[row, number - 1].tolist()
                    position[row] = number
                elif isinstance(error, StepGapError):
                    assert durability != "sync" or number - 1 > answered[row]
                    position[row] = int(error.metadata["expected_step"]) - 1
                elif isinstance(error, StepNotHeldError):
                    assert number <= answered[row], "its output was had before"
                    position[row] = number
                else:
                    assert isinstance(error, SessionMovedError), error
                answered[row] = max(answered[row], position[row])
        check(proxy)


# --- through raw stubs, by the rules of docs/raw-stubs.md -----------------------------------


class ByStream(SteppedOnce):  # type: ignore[misc]
    """The same, with the messages of the session on a stream."""

    stream: Any = None

    def send(self, request: Any) -> Any:
        self.stream = self.stream or Stream(self)
        fields = {"session_id": request.session_id, "step": request.step, "inputs": request.inputs}
        try:
            reply = self.stream.ask(**fields)
        except StopIteration:
            self.stream = None
            raise Refused(grpc.StatusCode.UNAVAILABLE) from None
        except grpc.RpcError:
            self.stream = None
            raise
        if reply.HasField("error"):
            raise Refused.of_message(reply.error)
        return reply.result


class ByBatch(SteppedOnce):  # type: ignore[misc]
    """The same, with each message as a StepBatch of one row."""

    def send(self, request: Any) -> Any:
        (x,) = request.inputs
        whole = tensor(array_of(x)[None])
        batch = StepBatchRequest(session_ids=[request.session_id], steps=[request.step], inputs=[whole])
        answer = self.inference.StepBatch(batch, timeout=5)
        for row in answer.errors:
            raise Refused.of_message(row.error)
        (y,) = answer.outputs
        return StepResult(
            step=answer.steps[0],
            outputs=[tensor(array_of(y)[0])],
            durable_step=answer.durable_steps[0] if answer.durable_steps else 0,
        )


@pytest.mark.parametrize("way", [SteppedOnce, ByStream, ByBatch])
async def test_steps_and_chunks_through_raw_stubs(servers: tuple[list[str], Any], way: Any) -> None:
    targets, durability = servers

    def run(seed: int) -> None:
        xs, begin = readings(seed), 0
        sums = np.cumsum(xs, axis=0)
        with grpc.insecure_channel(proxy.target, options=CHANNEL) as channel:
            session = way(channel, "counter", DURABILITIES[durability])
            while begin < STEPS:
                count = begin % 3 + 1
                part, expected = xs[begin : begin + count], sums[begin : begin + count]
                result = session.step([tensor(part if count > 1 else part[0])])
                np.testing.assert_array_equal(array_of(result.outputs[0]), expected if count > 1 else expected[0])
                begin += len(part)
                assert result.step == begin

    async with rpc_proxy(targets, seed=4) as proxy:
        await asyncio.gather(*(asyncio.to_thread(run, seed) for seed in range(SESSIONS)))
        check(proxy)
