"""StepBatch where not all its sessions are here: in the store after a server's death, or nowhere."""

import asyncio

import numpy as np
import pytest
from recurra.v1.inference_pb2 import StepBatchRequest
from recurra_server.checkpoints import Checkpoints
from recurra_server.driver import Driver
from recurra_server.engine.durability import Durability
from recurra_server.engine.engine import Engine
from recurra_server.engine.errors import InputNameError
from recurra_server.engine.limits import Limits
from recurra_server.engine.ports import Checkpoint
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.standing import Standing
from recurra_server.rpc.batches import step_batch
from recurra_server.runtimes.onnx import OnnxRuntime

from tests.support.attacks import Attack
from tests.support.memory_store import MemoryStore
from tests.support.wire import array_of, tensor

SESSIONS = 64


class Meeting(MemoryStore):
    """Gives sessions away only to several who wait for one together."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = self.most = 0
        self._together = asyncio.Barrier(8)

    async def take_over(self, store_key: str) -> Checkpoint | None:
        """Wait for the others."""
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        await self._together.wait()
        self.waiting -= 1
        return await super().take_over(store_key)


class Counting(MemoryStore):
    """Counts how often it is asked for a session."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def take_over(self, store_key: str) -> Checkpoint | None:
        """Count."""
        self.asked += 1
        return await super().take_over(store_key)


def server(runtime: OnnxRuntime, store: MemoryStore | None) -> Driver:
    driver = Driver(Engine(Limits()))
    driver.serve(ServedModel("counter", "1", "", runtime.signature, runtime, driver.engine.limits))
    if store is not None:
        driver.checkpoints = Checkpoints(driver.engine, store, interval=1.0, clock=driver.clock)
    return driver


def rows_of(session_ids: list[str]) -> StepBatchRequest:
    return StepBatchRequest(session_ids=session_ids, inputs=[tensor(np.ones((len(session_ids), 1)))])


async def test_sessions_that_are_in_the_store_are_taken_over_together(runtimes: dict[str, OnnxRuntime]) -> None:
    store = Meeting()
    before, after = server(runtimes["counter"], store), server(runtimes["counter"], store)
    beginning = Standing.beginning(before.engine.model("counter"), {})
    ids = [f"s{k}" for k in range(SESSIONS)]
    for session_id in ids:
        assert before.checkpoints is not None
        await before.checkpoints.open(beginning, session_id=session_id, idle_timeout=None, durability=Durability.ASYNC)
    request = StepBatchRequest(
        session_ids=["s0", *ids, "no id!"],
        steps=[1, 2, *[1] * SESSIONS],
        inputs=[tensor(np.ones((SESSIONS + 2, 1)))],
    )
    async with asyncio.timeout(20):
        response = await step_batch(after, request, float("inf"), None)
    assert [(row.row, row.error.reason) for row in response.errors] == [(SESSIONS + 1, "SESSION_NOT_FOUND")]
    assert array_of(response.outputs[0])[:-1, 0].tolist() == [1.0, 2.0, *[1.0] * (SESSIONS - 1)]
    assert 8 <= store.most < SESSIONS // 2, "others use the store, too"


async def test_a_session_is_looked_for_once_however_many_rows_it_has(
    runtimes: dict[str, OnnxRuntime], attack: Attack
) -> None:
    store = Counting()
    driver = server(runtimes["counter"], store)
    response = await step_batch(driver, rows_of(["nowhere"] * SESSIONS), float("inf"), None)
    assert [(row.row, row.error.reason) for row in response.errors] == [
        (row, "SESSION_NOT_FOUND") for row in range(SESSIONS)
    ]
    assert store.asked == 1
    attack("store", "a StepBatch of many rows of one session that is nowhere", "it is looked for once")


async def test_rows_without_a_session_leave_others_their_turns(
    runtimes: dict[str, OnnxRuntime], attack: Attack
) -> None:
    driver, turns = server(runtimes["counter"], None), 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    meanwhile = asyncio.create_task(others())
    ids = [f"absent-{row}" for row in range(driver.engine.limits.max_batch_rows)]
    response = await step_batch(driver, rows_of(ids), float("inf"), None)
    meanwhile.cancel()
    assert len(response.errors) == len(ids)
    assert turns >= len(ids) / 32
    attack(
        "gRPC port",
        "a StepBatch of as many rows as there may be, all of other sessions that are nowhere",
        "others have their turns",
    )


async def test_rows_without_a_session_are_looked_for_only_where_there_are_inputs(
    runtimes: dict[str, OnnxRuntime],
) -> None:
    store = Counting()
    with pytest.raises(InputNameError):
        await step_batch(
            server(runtimes["counter"], store), StepBatchRequest(session_ids=["nowhere"]), float("inf"), None
        )
    assert store.asked == 0
