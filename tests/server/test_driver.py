"""The driver on an event loop, with real models: inline and on a thread."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from recurra_server.driver import Driver
from recurra_server.engine.engine import Engine
from recurra_server.engine.errors import InternalError, SessionNotFoundError
from recurra_server.engine.limits import Limits
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.sessions import Session
from recurra_server.engine.steps import Step
from recurra_server.runtimes.onnx import OnnxRuntime

ONE = np.float32(1).tobytes()
Serve = Callable[[], tuple[Driver, ServedModel]]


@pytest.fixture(params=["inline", "thread"])
def serve(request: pytest.FixtureRequest, runtimes: dict[str, OnnxRuntime]) -> Iterator[Serve]:
    """Makes a driver with the counter model."""
    executor = ThreadPoolExecutor(1)

    def make() -> tuple[Driver, ServedModel]:
        driver = Driver(Engine(Limits()))
        runtime = runtimes["counter"]
        model = ServedModel("counter", "1", "", runtime.signature, driver.engine.limits)
        driver.serve(model, runtime, executor if request.param == "thread" else None)
        return driver, model

    yield make
    executor.shutdown()


def value(step: Step) -> float:
    return float(np.frombuffer(step.outputs[0], np.float32)[-1])


def open_session(driver: Driver, model: ServedModel) -> Session:
    return driver.engine.open(model, driver.clock())


async def test_steps_that_come_together_run_together(serve: Serve) -> None:
    driver, model = serve()
    sessions = [open_session(driver, model) for _ in range(10)]
    for turn in (1.0, 2.0, 3.0):
        steps = await asyncio.gather(*(driver.run_step(session, (ONE,), 1) for session in sessions))
        assert [value(step) for step in steps] == [turn] * 10
        assert {step.batch_size for step in steps} == {10}


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


@pytest.mark.parametrize("wrong", ["output", "state"])
async def test_a_model_that_answers_nonsense_fails_its_steps_and_not_the_server(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    driver, model = serve()
    session = open_session(driver, model)
    runtime = driver._lanes[model].runtime
    output, state = np.zeros((1, 1, 1), np.float32), np.zeros((1, 1), np.float32)
    nonsense = [np.zeros((3, 3), np.float32), state] if wrong == "output" else [output, np.zeros((2, 1), np.float32)]
    with monkeypatch.context() as broken:
        broken.setattr(runtime, "run", lambda _: nonsense)
        with pytest.raises(InternalError, match="its log tells more"):
            await driver.run_step(session, (ONE,), 1)
    assert value(await driver.run_step(session, (ONE,), 1)) == 1.0


async def test_a_lack_of_memory_fails_the_steps_it_hits_and_not_the_server(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, model = serve()
    session = open_session(driver, model)

    def no_memory(_: object) -> None:
        raise MemoryError

    for place in ("gather", "allocate"):
        with monkeypatch.context() as broken:
            broken.setattr(model.slots, place, no_memory if place == "gather" else lambda: no_memory(None))
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
