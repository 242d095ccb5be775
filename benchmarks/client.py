"""The load, in a process of its own: what a job asks for is done there, and its figures come back."""

import asyncio
import multiprocessing
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import uvloop
from numpy.typing import NDArray
from recurra_client.load.judges import Judge
from recurra_client.load.lanes import Lane, StreamLane, UnaryLane
from recurra_client.load.loops import close_all, open_all, run_closed
from recurra_client.load.outcome import Outcome
from recurra_client.load.paced import run_paced
from recurra_client.load.processes import allow_many_connections
from recurra_client.load.wire import WireConnection

from benchmarks.dialects import Dialect
from benchmarks.http1 import HttpLane
from benchmarks.processes import cpu_seconds, family

T = TypeVar("T")
Values = dict[str, float]


@dataclass(frozen=True)
class Job:
    """One measurement. Times are in seconds."""

    target: str
    pid: int
    """Of the server, for its processor time."""
    dialect: Dialect
    sessions: int
    seconds: float
    warmup: float = 0.3
    pace: float = 0.0
    arrivals: float = 500.0
    """Of paced sessions, in a second."""
    steps: int = 1
    """In one message."""


class ClientProcess:
    """Runs jobs one after another, in a process that has everything imported."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), allow_many_connections)

    def __enter__(self) -> "ClientProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def measure(self, job: Job) -> Values:
        """Steps a second, latencies in seconds, and processor time a step in seconds."""
        return self._pool.submit(measure, job).result()

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function of a module there."""
        return self._pool.submit(function, *arguments).result()


def measure(job: Job) -> Values:
    """Do a job here."""
    return in_loop(_measure(job))


def in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def _measure(job: Job) -> Values:
    outcome = Outcome()
    members = family(job.pid)
    cpu = 0.0

    def began() -> None:
        nonlocal cpu
        cpu = cpu_seconds(members)

    async with opened(job, outcome) as lanes:
        timing = {"warmup": job.warmup, "seconds": job.seconds}
        if job.pace:
            await run_paced(lanes, pace=job.pace, arrivals=job.arrivals, outcome=outcome, began=began, **timing)
        else:
            await run_closed(lanes, outcome=outcome, began=began, **timing)
        cpu = cpu_seconds(members) - cpu
    return _values(job, outcome, cpu)


@asynccontextmanager
async def opened(job: Job, outcome: Outcome) -> AsyncIterator[list[Lane]]:
    """The lanes of a job; open, unless they are paced."""
    x = np.random.default_rng(0).standard_normal((job.steps, 16) if job.steps > 1 else 16).astype(np.float32)
    connections: list[WireConnection] = []
    begin_id = random.randrange(1 << 30)  # a server may remember the sessions of the job before
    lanes = [await _lane(job, begin_id + i, x, connections) for i in range(job.sessions)]
    try:
        yield lanes if job.pace else await open_all(lanes, outcome)
    finally:
        await close_all(lanes)
        for connection in connections:
            connection.close()


def _values(job: Job, outcome: Outcome, server_cpu: float) -> Values:
    latencies: NDArray[np.float64] = np.frombuffer(outcome.latencies)
    p50, p99 = np.percentile(latencies, [50, 99])
    failed = sum(outcome.errors.values())
    values = {
        "steps_per_second": (len(latencies) - failed) * job.steps / outcome.seconds,
        "p50": float(p50),
        "p99": float(p99),
        "server_cpu_per_step": server_cpu / (len(latencies) * job.steps),
        "client_cpu": outcome.cpu / outcome.seconds,
        "errors": float(failed),
    }
    if job.pace:
        values["late_p99"] = float(np.percentile(np.frombuffer(outcome.lateness), 99))
        values["refused"] = float(sum(outcome.refused.values()))
    return values


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
