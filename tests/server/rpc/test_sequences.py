"""Sequences whose requests come without waiting: each id is served in the order of its requests."""

import asyncio
import gc
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recurra_server.driver import Driver
from recurra_server.engine.accounts import Account, Quota
from recurra_server.engine.engine import Engine
from recurra_server.engine.errors import EngineError
from recurra_server.engine.limits import Limits
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.sessions import Session
from recurra_server.rpc.opened import Opened
from recurra_server.rpc.openinference.requests import Inference, read_request
from recurra_server.rpc.openinference.sequences import Sequences
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.tracecontext import Trace

from tests.support import models
from tests.support.harness import load
from tests.support.openinference import request

Answer = float | str


@dataclass(frozen=True)
class Ask:
    """A step of a running sum; NaN fails when it is run."""

    sequence: int
    start: bool
    end: bool
    value: float


class Recorder:
    """Whoever asks, and what was answered."""

    def __init__(self) -> None:
        self.gone = False
        self.trace: Trace | None = None
        self.account: Account | None = None
        self.leases: set[ExitStack] = set()
        self.opened: Opened | None = None
        self.answers: list[tuple[int | str | None, Answer]] = []

    def answered(self, step: Inference) -> None:
        """Note an answer."""
        if step.error is not None:
            self.answers.append((step.sequence, step.error.reason))
        else:
            self.answers.append((step.sequence, float(np.frombuffer(step.outputs[0], np.float32)[-1])))
        if step.finish is not None:
            step.finish(step)

    def go(self) -> None:
        """Wait no more."""
        self.gone = True
        for lease in tuple(self.leases):
            lease.close()


class Server:
    """Sequences over an engine, without a wire."""

    def __init__(self, runtime: OnnxRuntime, limits: Limits | None = None) -> None:
        self.driver = Driver(Engine(limits or Limits()))
        self.model = ServedModel("counter", "1", "", runtime.signature, runtime, self.driver.engine.limits)
        self.driver.serve(self.model)
        self.sequences = Sequences(self.driver)
        self.caller = Recorder()

    def send(self, ask: Ask | None, steps: int = 1) -> None:
        """Send a request; what is refused at once is an answer, too."""
        if ask is None:
            message = request(np.ones((steps, 1)))
        else:
            x = np.full((steps, 1), ask.value)
            message = request(x, sequence=ask.sequence, start=ask.start, end=ask.end)
        inference = read_request(message, self.caller, self.driver.clock())
        try:
            self.sequences.take(inference, message)
        except EngineError as error:
            inference.fail(error)

    async def settle(self) -> None:
        """Wait until all that was sent is answered."""
        while self.model.turns.depth:  # noqa: ASYNC110 - each turn of the loop runs a batch
            await asyncio.sleep(0)


def expected(asks: list[Ask]) -> dict[int, list[Answer]]:
    """What each id is answered if its requests are served one after another."""
    sums: dict[int, float] = {}
    answers: dict[int, list[Answer]] = defaultdict(list)
    for ask in asks:
        if ask.start:
            sums[ask.sequence] = 0
        if ask.sequence not in sums:
            answers[ask.sequence].append("SESSION_NOT_FOUND")
        elif np.isnan(ask.value):
            answers[ask.sequence].append("INPUT_NOT_FINITE")
            if ask.start:
                del sums[ask.sequence]
        else:
            sums[ask.sequence] += ask.value
            answers[ask.sequence].append(sums[ask.sequence])
            if ask.end:
                del sums[ask.sequence]
    return answers


_asks = st.builds(
    Ask,
    sequence=st.integers(1, 3),
    start=st.booleans(),
    end=st.booleans(),
    value=st.one_of(st.integers(0, 9).map(float), st.just(float("nan"))),
)


@given(bursts=st.lists(st.lists(_asks, max_size=25), max_size=3))
def test_each_id_is_served_in_the_order_of_its_requests(
    runtimes: dict[str, OnnxRuntime], bursts: list[list[Ask]]
) -> None:
    async def run() -> Server:
        server = Server(runtimes["counter"])
        for burst in bursts:
            for ask in burst:  # all before the first batch runs
                server.send(ask)
            await server.settle()
        return server

    server = asyncio.run(run())
    answers: dict[int | str | None, list[Answer]] = defaultdict(list)
    for sequence, answer in server.caller.answers:
        answers[sequence].append(answer)
    assert answers == expected([ask for burst in bursts for ask in burst])
    assert server.model.slots.in_use == server.model.sessions


async def test_what_waits_behind_a_start_is_bounded(runtimes: dict[str, OnnxRuntime]) -> None:
    server = Server(runtimes["counter"], Limits(max_queue_per_session=4))
    for start in (True, True, False, False, False, False):
        server.send(Ask(1, start=start, end=False, value=1))
    assert server.caller.answers == [(1, "CAPACITY")]
    await server.settle()
    assert server.caller.answers[1:] == [(1, 1.0), (1, 1.0), (1, 2.0), (1, 3.0), (1, 4.0)]


@pytest.mark.parametrize("answered", [False, True])
async def test_a_sequence_whose_first_step_is_not_waited_for_has_not_begun(
    runtimes: dict[str, OnnxRuntime], answered: bool
) -> None:
    """Else the next step would be taken for its first. Once that is answered, whoever sent it may go."""
    server = Server(runtimes["counter"])
    server.send(Ask(1, start=True, end=False, value=1))
    if answered:
        await server.settle()
    server.caller.go()
    await server.settle()
    server.caller = Recorder()
    server.send(Ask(1, start=False, end=False, value=1))
    await server.settle()
    assert server.caller.answers == [(1, 2.0 if answered else "SESSION_NOT_FOUND")]


async def test_a_start_that_waits_and_is_not_waited_for_does_not_begin(runtimes: dict[str, OnnxRuntime]) -> None:
    server = Server(runtimes["counter"])
    first = server.caller
    server.send(Ask(1, start=True, end=False, value=1))
    server.caller = second = Recorder()
    server.send(Ask(1, start=True, end=False, value=5))  # behind the first
    server.caller = third = Recorder()
    server.send(Ask(1, start=False, end=False, value=1))  # behind the second
    second.go()
    await server.settle()
    assert (first.answers, second.answers, third.answers) == ([(1, 1.0)], [], [(1, "SESSION_NOT_FOUND")])
    assert server.model.slots.in_use == 0


async def test_what_waits_behind_a_start_that_is_not_waited_for_goes_to_no_other(
    runtimes: dict[str, OnnxRuntime],
) -> None:
    server = Server(runtimes["counter"])
    server.send(Ask(1, start=True, end=False, value=1))
    server.send(Ask(1, start=True, end=False, value=5))  # behind the first
    stays, server.caller = server.caller, Recorder()
    server.send(Ask(1, start=True, end=False, value=7))  # behind the second
    goes, server.caller = server.caller, stays
    server.send(Ask(1, start=False, end=False, value=1))  # meant for the third
    goes.go()
    await server.settle()
    assert (stays.answers, goes.answers) == ([(1, 1.0), (1, 5.0), (1, "SESSION_NOT_FOUND")], [])
    assert server.model.slots.in_use == 0


@pytest.mark.parametrize("in_flight", [False, True])
@pytest.mark.parametrize("why", ["CAPACITY", "DRAINING"])
async def test_a_sequence_begins_anew_where_no_other_could_be_opened(
    runtimes: dict[str, OnnxRuntime], why: str, in_flight: bool
) -> None:
    server = Server(runtimes["counter"], Limits(admit_below=1e-9, max_sessions=2))  # all steps take too long
    for k in range(20):
        server.send(Ask(1, start=k == 0, end=False, value=1))
    await server.settle()
    server.driver.engine.draining = why == "DRAINING"
    server.caller.answers.clear()
    server.send(Ask(2, start=True, end=False, value=1))
    if in_flight:
        server.send(Ask(1, start=False, end=False, value=1))
    for start in (True, False):
        server.send(Ask(1, start=start, end=False, value=5))
        if not in_flight:
            await server.settle()
    await server.settle()
    assert server.caller.answers == [(2, why), *([(1, 21.0)] if in_flight else ()), (1, 5.0), (1, 10.0)]
    assert server.model.slots.in_use == server.model.sessions == 1


@pytest.mark.parametrize("in_flight", [False, True])
async def test_a_start_that_its_caller_may_not_make_leaves_the_sequence_as_it_was(
    runtimes: dict[str, OnnxRuntime], tmp_path: Path, in_flight: bool
) -> None:
    """But what waited behind the start was not meant for the sequence before."""
    server = Server(runtimes["counter"])
    server.send(Ask(1, start=True, end=False, value=1))
    await server.settle()
    larger = load(tmp_path, models.rnn(1, 8, 1))
    server.driver.serve(ServedModel("counter", "2", "", larger.signature, larger, server.driver.engine.limits))
    server.driver.engine.accounts.nobody.quota = Quota(state_bytes=server.model.signature.state_bytes)
    if in_flight:
        server.send(Ask(1, start=False, end=False, value=1))
    server.send(Ask(1, start=True, end=False, value=1))  # on the newest version
    server.send(Ask(1, start=False, end=False, value=1))
    await server.settle()
    goes_on = [(1, 2.0), (1, "CAPACITY"), (1, "SESSION_NOT_FOUND")] if in_flight else [(1, "CAPACITY"), (1, 2.0)]
    assert server.caller.answers == [(1, 1.0), *goes_on]


async def test_a_start_whose_model_is_gone_when_its_turn_comes_is_refused_once(
    runtimes: dict[str, OnnxRuntime],
) -> None:
    server = Server(runtimes["counter"])
    server.send(Ask(1, start=True, end=False, value=1))
    await server.settle()
    newer = ServedModel("counter", "2", "", server.model.signature, runtimes["counter"], server.driver.engine.limits)
    server.driver.serve(newer)
    server.driver.on_forget.append(server.sequences.forget)
    server.send(Ask(1, start=False, end=False, value=1))
    server.send(Ask(1, start=True, end=False, value=5))  # on the newer version, behind the step before
    server.driver.engine.shelf.remove(newer)
    server.driver._forget_retired()
    server.send(Ask(1, start=False, end=False, value=1))  # which would go on there
    await server.settle()
    assert server.caller.answers == [(1, 1.0), (1, "MODEL_NOT_FOUND"), (1, 2.0), (1, "MODEL_NOT_FOUND")]
    assert newer not in server.sequences._codecs, "nothing of it is kept"
    assert server.model.slots.in_use == newer.slots.in_use == 0


async def test_a_stream_that_begins_a_sequence_again_and_again_keeps_nothing_of_those_before(
    runtimes: dict[str, OnnxRuntime],
) -> None:
    def closed() -> int:
        return sum(type(thing) is Session and thing.closed for thing in gc.get_objects())

    server, before = Server(runtimes["counter"]), closed()
    server.caller.opened = Opened(2)
    for _ in range(1000):
        server.send(Ask(1, start=True, end=False, value=1))
        await server.settle()
    assert closed() - before < 200
    server.send(Ask(2, start=True, end=False, value=1))
    server.send(Ask(3, start=True, end=False, value=1))
    assert server.caller.answers[-1] == (3, "CAPACITY")


@pytest.mark.parametrize("runs", [False, True])
async def test_who_goes_away_gives_back_what_only_he_knew(runtimes: dict[str, OnnxRuntime], runs: bool) -> None:
    server = Server(runtimes["counter"], Limits(max_sessions=1))
    server.send(None, steps=100)
    if runs:  # the first of its pieces has been run
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert server.model.turns.depth == 1
    server.caller.go()
    await server.settle()
    assert server.model.slots.in_use == 0
    assert server.caller.answers == []
    server.caller = Recorder()
    server.send(None, steps=3)  # there is room
    await server.settle()
    assert server.caller.answers == [(None, 3.0)]
    assert server.caller.leases == set()


async def test_a_model_that_is_forgotten_leaves_nothing_behind(runtimes: dict[str, OnnxRuntime]) -> None:
    server = Server(runtimes["counter"])
    server.send(None)
    await asyncio.sleep(0)
    assert list(server.sequences._codecs) == [server.model]
    server.sequences.forget(server.model)
    assert not server.sequences._codecs
