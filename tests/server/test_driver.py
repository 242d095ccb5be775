"""The driver on an event loop, with real models: inline and on a thread."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import grpc
import numpy as np
import pytest
from recurra.v1 import inference_pb2, sessions_pb2, tensor_pb2
from recurra_server.driver import Driver
from recurra_server.engine import snapshots
from recurra_server.engine.batch import Batch
from recurra_server.engine.engine import Engine
from recurra_server.engine.errors import (
    EngineError,
    InternalError,
    SessionChangedError,
    SessionMovedError,
    SessionNotFoundError,
)
from recurra_server.engine.limits import Limits
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.sessions import Session
from recurra_server.engine.standing import Standing
from recurra_server.engine.steps import Step
from recurra_server.rpc.generate import generate
from recurra_server.rpc.sessions import SessionsServicer
from recurra_server.rpc.step_stream import StepStream
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.telemetry.metrics import EdgeCounts

from tests.support.harness import Asker
from tests.support.wire import tensor

ONE = np.float32(1).tobytes()
Serve = Callable[[], tuple[Driver, ServedModel]]


@pytest.fixture(params=["inline", "thread"])
def serve(request: pytest.FixtureRequest, runtimes: dict[str, OnnxRuntime]) -> Iterator[Serve]:
    """Makes a driver with the counter model."""
    executor = ThreadPoolExecutor(1)

    def make() -> tuple[Driver, ServedModel]:
        driver = Driver(Engine(Limits()))
        runtime = runtimes["counter"]
        model = ServedModel("counter", "1", "", runtime.signature, runtime, driver.engine.limits)
        driver.serve(model, executor if request.param == "thread" else None)
        return driver, model

    yield make
    executor.shutdown()


def value(step: Step) -> float:
    return float(np.frombuffer(step.outputs[0], np.float32)[-1])


def open_session(driver: Driver, model: ServedModel) -> Session:
    return driver.engine.open(model, driver.clock())


async def test_how_far_a_session_is_is_told_when_it_is_at_rest(serve: Serve) -> None:
    """Whoever has given up their first step would else give its number to the next, and get the first one's reply."""
    driver, model = serve()
    session, servicer = open_session(driver, model), SessionsServicer(driver, EdgeCounts(), None)
    request = sessions_pb2.GetSessionRequest(session_id=session.id or "")
    for steps in (1, 2):
        asking = asyncio.ensure_future(servicer.GetSession(request, cast("Any", None)))
        driver.submit(Step(session, (ONE,), 1, Asker([]), driver.clock(), number=steps))  # in flight when it is asked
        assert (await asking).session.steps == steps


async def generating(
    letters: OnnxRuntime,
) -> tuple[Driver, Session, AsyncGenerator[inference_pb2.GenerateResponse, None]]:
    """A session that generates three steps, of which the first is answered."""
    driver = Driver(Engine(Limits()))
    model = ServedModel("letters", "1", "", letters.signature, letters, driver.engine.limits)
    driver.serve(model)
    session = open_session(driver, model)
    request = inference_pb2.GenerateRequest(session_id=session.id or "", inputs=[tensor(1, "int64")], max_steps=3)
    answers = generate(driver, request, None)
    assert (await anext(answers)).result.step == 1
    return driver, session, answers


async def test_steps_that_come_together_run_together(serve: Serve) -> None:
    driver, model = serve()
    sessions = [open_session(driver, model) for _ in range(10)]
    for turn in (1.0, 2.0, 3.0):
        steps = await asyncio.gather(*(driver.run_step(session, (ONE,), 1) for session in sessions))
        assert [value(step) for step in steps] == [turn] * 10
        assert {step.batch_size for step in steps} == {10}


@pytest.mark.parametrize(("end", "told"), [(Engine.close, SessionNotFoundError), (Engine.let_go, SessionMovedError)])
async def test_a_session_that_ends_while_its_steps_are_made_sure_of_is_not_there(
    serve: Serve, end: Callable[[Engine, Session], None], told: type[EngineError]
) -> None:
    """Its slot is the next one's: what whoever asked would make of it is about that."""
    driver, model = serve()
    session = open_session(driver, model)
    sure = asyncio.ensure_future(driver.has_applied(session, 1))
    asyncio.get_running_loop().call_soon(model.turns.at_rest, session, partial(end, driver.engine, session))
    driver.submit(Step(session, (ONE,), 1, Asker([]), driver.clock()))  # both wait behind it
    with pytest.raises(told):
        await sure
    assert session.applied == 1, "it was applied, and the session ended behind it"


async def test_a_generation_whose_session_goes_on_elsewhere_is_told_so(runtimes: dict[str, OnnxRuntime]) -> None:
    driver, session, answers = await generating(runtimes["letters"])
    driver.engine.let_go(session)  # nothing of it is in flight between two steps
    with pytest.raises(SessionMovedError):
        await anext(answers)


async def test_a_generation_whose_session_is_forked_goes_on(runtimes: dict[str, OnnxRuntime]) -> None:
    driver, session, answers = await generating(runtimes["letters"])
    await driver.at_rest(session, lambda: Standing.take(session, driver.clock()))
    assert [answer.result.step async for answer in answers] == [2, 3]


async def _reset(driver: Driver, session: Session) -> None:
    await driver.at_rest(session, lambda: driver.engine.reset(session, driver.clock()))


async def _step(driver: Driver, session: Session) -> None:
    await driver.run_step(session, (np.int64(1).tobytes(),), 1, number=session.applied + 1)


async def _reset_and_step(driver: Driver, session: Session) -> None:
    await _reset(driver, session)
    await _step(driver, session)


async def _rewind(driver: Driver, session: Session) -> None:
    taken = await driver.at_rest(session, lambda: snapshots.take(session, driver.clock()))
    await _step(driver, session)
    await driver.at_rest(session, lambda: snapshots.rewind(session, taken, driver.clock()))


@pytest.mark.parametrize("change", [_reset, _step, _reset_and_step, _rewind])
async def test_a_generation_goes_on_only_while_its_session_is_as_it_left_it(
    change: Callable[[Driver, Session], Awaitable[None]], runtimes: dict[str, OnnxRuntime]
) -> None:
    """What others make of the session is theirs: it would have been on top of the values that were generated."""
    driver, session, answers = await generating(runtimes["letters"])
    await change(driver, session)
    left, kept = session.place, session.last_reply
    with pytest.raises(SessionChangedError, match=f"with step {left.applied + 1}$"):
        await anext(answers)
    assert (session.place, session.last_reply) == (left, kept)


async def test_only_large_batches_leave_the_loops_thread(runtimes: dict[str, OnnxRuntime]) -> None:
    driver = Driver(Engine(Limits()))
    model = ServedModel("counter", "1", "", runtimes["counter"].signature, runtimes["counter"], Limits())
    ran: list[tuple[int, bool]] = []
    call = Batch.run

    def run(batch: Batch) -> None:
        ran.append((batch.work, threading.current_thread() is threading.main_thread()))
        call(batch)

    with ThreadPoolExecutor(1) as executor, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "run", run)
        driver.serve(model, executor, inline_work=4)
        sessions = [open_session(driver, model) for _ in range(5)]
        await asyncio.gather(*(driver.run_step(session, (ONE,), 1) for session in sessions[:4]))
        await asyncio.gather(*(driver.run_step(session, (ONE,), 1) for session in sessions))
        await driver.run_step(sessions[0], (ONE * 4,), 4)
        await driver.run_step(sessions[0], (ONE * 8,), 8)
    assert ran == [(4, True), (5, False), (4, True), (8, False)]


async def test_a_caller_cancelled_while_its_batch_runs_disturbs_nobody(serve: Serve) -> None:
    driver, model = serve()
    sessions = [open_session(driver, model) for _ in range(3)]
    tasks = [asyncio.create_task(driver.run_step(session, (ONE,), 1)) for session in sessions]
    await asyncio.sleep(0)  # all are submitted, the batch is about to run
    tasks[1].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
    assert [value(step) for step in (results[0], results[2]) if isinstance(step, Step)] == [1.0, 1.0]
    assert model.turns.depth == 0
    following = await driver.run_step(sessions[1], (ONE,), 1)
    assert value(following) in (1.0, 2.0), "it was either applied or not"


async def test_what_waits_for_rest_comes_in_its_turn(serve: Serve) -> None:
    driver, model = serve()
    session = open_session(driver, model)
    first = asyncio.create_task(driver.run_step(session, (ONE,), 1))
    await asyncio.sleep(0)
    reset = asyncio.create_task(driver.at_rest(session, lambda: driver.engine.reset(session, driver.clock())))
    await asyncio.sleep(0)
    second = asyncio.create_task(driver.run_step(session, (ONE,), 1))
    await reset
    assert [value(await first), value(await second)] == [1.0, 1.0]


async def test_what_waits_for_rest_is_told_that_the_session_has_ended(serve: Serve) -> None:
    driver, model = serve()
    session = open_session(driver, model)
    step = asyncio.create_task(driver.run_step(session, (ONE,), 1))
    await asyncio.sleep(0)
    reset = asyncio.create_task(driver.at_rest(session, lambda: driver.engine.reset(session, driver.clock())))
    await asyncio.sleep(0)
    if session.current is not None:
        driver.engine.close(session)
    results = await asyncio.gather(step, reset, return_exceptions=True)
    for result in results:
        assert result is None or isinstance(result, Step | SessionNotFoundError)
    assert model.turns.depth == 0


async def test_a_lack_of_memory_fails_the_steps_it_hits_and_not_the_server(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, model = serve()
    session = open_session(driver, model)

    def no_memory() -> None:
        raise MemoryError

    for place in ("gather", "allocate"):
        with monkeypatch.context() as broken:
            broken.setattr(model.slots, place, lambda *_: no_memory())
            with pytest.raises(InternalError):
                await driver.run_step(session, (ONE * 100,), 100)
    assert model.turns.depth == 0
    assert value(await driver.run_step(session, (ONE,), 1)) == 1.0


async def test_a_wish_that_was_cancelled_is_not_granted(serve: Serve) -> None:
    driver, model = serve()
    session = open_session(driver, model)
    step = asyncio.create_task(driver.run_step(session, (ONE,), 1))
    await asyncio.sleep(0)
    reset = asyncio.create_task(driver.at_rest(session, lambda: driver.engine.reset(session, driver.clock())))
    await asyncio.sleep(0)
    was_in_time = session.current is not None
    reset.cancel()
    await asyncio.gather(step, reset, return_exceptions=True)
    if was_in_time:
        assert value(await driver.run_step(session, (ONE,), 1)) == 2.0


class UnreadCall:
    """A call whose caller sends chunks of 300 steps without end and reads no answer."""

    def __init__(self) -> None:
        self.reads = 0

    async def read(self) -> inference_pb2.StreamStepsRequest:
        self.reads += 1
        chunk = tensor_pb2.Tensor(data=ONE * 300)
        opening = sessions_pb2.OpenSessionRequest(model="counter") if self.reads == 1 else None
        return inference_pb2.StreamStepsRequest(open=opening, inputs=[chunk])

    async def write(self, _: inference_pb2.StreamStepsResponse) -> None:
        await asyncio.get_running_loop().create_future()


async def test_what_an_unread_stream_may_hold_is_counted_in_time_steps(serve: Serve) -> None:
    driver, _ = serve()
    call = UnreadCall()
    stream = StepStream(driver, EdgeCounts(), {}, cast("Any", call), window=1000, caller=None)
    running = asyncio.create_task(stream.run())
    for _ in range(1000):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    bound = driver.engine.limits.max_chunk_steps
    assert call.reads == bound // 300 + 1


class LostCall(UnreadCall):
    """A call that is over by the time its first answer is sent, which nobody has been told yet."""

    async def write(self, _: inference_pb2.StreamStepsResponse) -> None:
        raise grpc.aio.InternalError("the call is over")


async def test_a_caller_who_is_gone_is_no_error_of_the_server(serve: Serve) -> None:
    stream = StepStream(serve()[0], EdgeCounts(), {}, cast("Any", LostCall()), window=1000, caller=None)
    with pytest.raises(asyncio.CancelledError):  # which gRPC logs nothing of
        await stream.run()
