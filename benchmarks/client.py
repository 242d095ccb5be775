"""The load, in a process of its own: what a job asks for is done there, and its figures come back."""

import asyncio
import multiprocessing
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import uvloop
from numpy.typing import NDArray
from recurra.v1 import models_pb2
from recurra_client.client import Client
from recurra_client.load.generator import run_load
from recurra_client.load.judges import Judge
from recurra_client.load.lanes import Lane, StreamLane, UnaryLane
from recurra_client.load.loops import CAPACITY, UNANSWERED, Timing, close_all, open_all, run_closed
from recurra_client.load.outcome import Outcome, Plan
from recurra_client.load.processes import allow_many_connections
from recurra_client.load.wire import WireConnection

from benchmarks.dialects import Dialect
from benchmarks.http1 import HttpLane
from benchmarks.processes import cpu_seconds, family

_TURN_SECONDS: Final = 0.5
_WARMUP_SECONDS: Final = 0.2

T = TypeVar("T")
Values = dict[str, float]


@dataclass(frozen=True)
class Job:
    """A closed loop of single steps on a server."""

    target: str
    pid: int
    """Of the server, for its processor time."""
    dialect: Dialect
    sessions: int


class ClientProcess:
    """Runs jobs one after another, in a process that has everything imported."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), allow_many_connections)

    def __enter__(self) -> "ClientProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Run a function of a module there."""
        return self.begin(function, *arguments, **named).result()

    def begin(self, function: Callable[..., T], *arguments: Any, **named: Any) -> "Future[T]":
        """Begin to run it there."""
        return self._pool.submit(function, *arguments, **named)


def in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def measure_in_turns(jobs: Sequence[Job], seconds: float) -> list[Values]:
    """Measure servers that all run, each for so many seconds, in turns of half a second: what disturbs hits all alike.

    Returns:
        Of each: steps a second, latencies in seconds, processor time a step in seconds.
    """
    return in_loop(_measure_in_turns(jobs, seconds))


def load(target: str, pid: int, model: str, **plan: Any) -> Values:
    """Load a server of ours as `recurra bench` does, with the fields of a `Plan`."""
    return in_loop(_load(target, pid, model, plan))


class _ServerTime:
    """The processor time that a server takes while it is measured."""

    def __init__(self, pid: int) -> None:
        self._members = family(pid)
        self._began = self.seconds = 0.0

    def begin(self) -> None:
        self._began = cpu_seconds(self._members)

    def end(self) -> None:
        self.seconds += cpu_seconds(self._members) - self._began


async def _measure_in_turns(jobs: Sequence[Job], seconds: float) -> list[Values]:
    outcomes, times = [Outcome() for _ in jobs], [_ServerTime(job.pid) for job in jobs]
    turns = max(1, round(seconds / _TURN_SECONDS)) if len(jobs) > 1 else 1
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(_opened(job)) for job in jobs]
        for _ in range(turns):
            for lanes, outcome, time in zip(opened, outcomes, times, strict=True):
                await run_closed(lanes, Timing(_WARMUP_SECONDS, seconds / turns, began=time.begin), outcome)
                time.end()
    return [
        _values(outcome, len(outcome.latencies) - outcome.errors.total(), time.seconds)
        for outcome, time in zip(outcomes, times, strict=True)
    ]


@asynccontextmanager
async def _opened(job: Job) -> AsyncIterator[list[Lane]]:
    """The lanes of a job, open."""
    x = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    connections: list[WireConnection] = []
    begin_id = random.randrange(1 << 30)  # a server may remember the sessions of the job before
    lanes = [await _lane(job, begin_id + i, x, connections) for i in range(job.sessions)]
    try:
        yield await open_all(lanes, Outcome())
    finally:
        await close_all(lanes)
        for connection in connections:
            connection.close()


async def _lane(job: Job, session: int, x: NDArray[np.float32], connections: list[WireConnection]) -> Lane:
    dialect = job.dialect
    first, following = dialect.encode(session, x, first=True), dialect.encode(session, x, first=False)
    judge = _judge(dialect.good(session))
    if dialect.transport == "http":
        return await HttpLane.connect(job.target, dialect.path, first, following, judge)
    connection = await WireConnection.connect(job.target)
    connections.append(connection)
    if dialect.transport == "unary":
        return UnaryLane(connection, dialect.path, following, judge, opening=[(dialect.path, first)])
    return StreamLane(connection, dialect.path, first, following, judge)


def _judge(good: bytes) -> Judge:
    size = len(good)

    def judge(reply: bytes) -> Sequence[str]:
        return () if reply[:size] == good else ["REFUSED"]

    return judge


async def _load(target: str, pid: int, model: str, fields: dict[str, Any]) -> Values:
    plan, time = Plan(target, await _describe(target, model, fields.get("token", "")), **fields), _ServerTime(pid)
    outcome = await run_load(plan, lambda: None, [0], 0, time.begin)
    time.end()
    values = _values(outcome, outcome.steps, time.seconds)
    if plan.pace:
        values["p99_of_seconds"] = _p99_of_seconds(outcome)
        values["late_p99"] = float(np.percentile(np.frombuffer(outcome.lateness), 99))
        values["refused"] = float(outcome.refused[CAPACITY])
        values["unanswered"] = float(outcome.refused[UNANSWERED])
    return values


def _p99_of_seconds(outcome: Outcome) -> float:
    """The p99 of a second, in the middle of all seconds: bursts of what else the machine does are not in it."""
    seconds = np.array_split(np.frombuffer(outcome.latencies), max(1, int(outcome.seconds)))
    return float(np.median([np.percentile(second, 99) for second in seconds]))


async def _describe(target: str, model: str, token: str) -> models_pb2.Model:
    async with Client(target, token=token) as client:
        return await client.model(model)


def _values(outcome: Outcome, steps: int, server_cpu: float) -> Values:
    latencies: NDArray[np.float64] = np.frombuffer(outcome.latencies)
    p50, p99 = np.percentile(latencies, [50, 99])
    return {
        "steps_per_second": steps / outcome.seconds,
        "p50": float(p50),
        "p99": float(p99),
        "server_cpu_per_step": server_cpu / max(1, steps),
        "client_cpu": outcome.cpu / outcome.seconds,
        "errors": float(outcome.errors.total()),
    }
