"""A stream whose caller would not be let in any more, or that outlives a drain."""

import asyncio
from typing import Any, cast

import grpc
import pytest
from recurra.v1 import inference_pb2, sessions_pb2
from recurra_server.driver import Driver
from recurra_server.engine.engine import Engine
from recurra_server.engine.errors import UnauthenticatedError
from recurra_server.engine.limits import Limits
from recurra_server.engine.served_model import ServedModel
from recurra_server.rpc.step_stream import StepStream
from recurra_server.rpc.stream_base import Stream
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.telemetry.metrics import EdgeCounts

OPENING = inference_pb2.StreamStepsRequest(open=sessions_pb2.OpenSessionRequest(model="counter"))
TAKEN_BACK = UnauthenticatedError("it was taken back")


class Reluctant:
    """A call whose caller sends a message, and another when told to, and reads no answer; its status comes behind."""

    def __init__(self) -> None:
        self.more = asyncio.Event()
        self.status: grpc.StatusCode | None = None
        self._all_taken_in = asyncio.Event()
        self._all_taken_in.set()
        self._reads = 0

    async def read(self) -> inference_pb2.StreamStepsRequest:
        self._reads += 1
        if self._reads > 1:
            await self.more.wait()
        return OPENING

    async def write(self, _: inference_pb2.StreamStepsResponse) -> None:
        self._all_taken_in.clear()
        await self._all_taken_in.wait()

    async def abort(self, code: grpc.StatusCode, *_: object) -> None:
        await self._all_taken_in.wait()
        self.status = code
        raise grpc.aio.AbortError


class Unanswered(Stream):
    """None of its messages is answered: as where a step waits for a store that is away."""

    def _accept(self, request: object) -> None:
        pass

    def announce(self, grace: float) -> None:
        self._writer.put(str, grace, 0)


async def turns() -> None:
    """Let all do what they can without anything new from outside."""
    for _ in range(20):
        await asyncio.sleep(0)


def opening(runtime: OnnxRuntime, call: Reluctant) -> tuple[StepStream, Engine]:
    """A stream that opens sessions for its messages."""
    driver = Driver(Engine(Limits()))
    driver.serve(ServedModel("counter", "1", "", runtime.signature, runtime, driver.engine.limits))
    return StepStream(driver, EdgeCounts(), {}, cast("Any", call), window=100, caller=None), driver.engine


async def test_nothing_that_comes_later_is_done(runtimes: dict[str, OnnxRuntime]) -> None:
    call = Reluctant()
    stream, engine = opening(runtimes["counter"], call)
    running = asyncio.ensure_future(stream.run())
    await turns()
    assert len(engine.accounts.nobody.sessions) == 1
    stream.expel(TAKEN_BACK)
    call.more.set()
    await turns()
    assert len(engine.accounts.nobody.sessions) == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_told_again_it_does_not_wait_for_its_caller_to_read(runtimes: dict[str, OnnxRuntime]) -> None:
    stream, _ = opening(runtimes["counter"], Reluctant())
    running = asyncio.ensure_future(stream.run())
    await turns()
    stream.expel(TAKEN_BACK)
    await turns()
    assert not running.done(), "its caller has the time between to read"
    stream.expel(TAKEN_BACK)
    await turns()
    assert running.cancelled(), "a status would have to wait behind the answer"


@pytest.mark.parametrize("meanwhile", [False, True])
async def test_told_again_it_does_not_wait_for_answers(*, meanwhile: bool) -> None:
    call = Reluctant()
    stream = Unanswered(cast("Any", call), window=100, max_steps=100, max_sessions=100)
    running = asyncio.ensure_future(stream.run())
    await turns()
    stream.expel(TAKEN_BACK)
    await turns()
    assert not running.done()
    stream.expel(TAKEN_BACK)
    if meanwhile:  # one is there at last
        stream.announce(1.0)
    with pytest.raises(grpc.aio.AbortError):
        await asyncio.wait_for(running, 10)
    assert call.status is grpc.StatusCode.UNAUTHENTICATED
