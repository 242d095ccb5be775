"""The load, in a process of its own: what a job asks for is done there, and its figures come back."""

import asyncio
import multiprocessing
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import uvloop
from numpy.typing import NDArray
from recurra_client.load.lanes import Judge, Lane, StreamLane, UnaryLane
from recurra_client.load.loops import once, run_lanes
from recurra_client.load.outcome import Outcome
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
    steps: int = 1
    """In one message."""


class ClientProcess:
    """Runs jobs one after another, in a process that has everything imported."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

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
    x = np.random.default_rng(0).standard_normal((job.steps, 16) if job.steps > 1 else 16).astype(np.float32)
    connections: list[WireConnection] = []
    begin_id = random.randrange(1 << 30)  # a server may remember the sessions of the job before
    senders = [await _lane(job, begin_id + i, x, connections) for i in range(job.sessions)]
    try:
        for begin in range(0, len(senders), 64):
            answers = await asyncio.gather(*(once(lane) for lane in senders[begin : begin + 64]))
            if failures := [reason for reasons in answers for reason in reasons]:
                raise ConnectionError(f"a first step failed: {failures[0]}")
        members = family(job.pid)
        samples: list[tuple[float, float, int]] = []
        sampler = asyncio.create_task(_sample(job, members, outcome, samples))
        await run_lanes(senders, warmup=job.warmup, seconds=job.seconds, pace=job.pace, outcome=outcome)
        await sampler
    finally:
        for connection in connections:
            connection.close()
        for lane in senders:
            if isinstance(lane, HttpLane):
                lane.close()
    return _values(job, outcome, samples)


async def _sample(job: Job, members: list[int], outcome: Outcome, samples: list[tuple[float, float, int]]) -> None:
    """Processor time of the server and messages answered, at the begin and the end of measuring."""
    for wait in (job.warmup, job.seconds):
        await asyncio.sleep(wait)
        samples.append((time.perf_counter(), cpu_seconds(members), len(outcome.latencies)))


def _values(job: Job, outcome: Outcome, samples: Sequence[tuple[float, float, int]]) -> Values:
    latencies: NDArray[np.float64] = np.frombuffer(outcome.latencies)
    p50, p99 = np.percentile(latencies, [50, 99])
    (_, cpu_before, before), (_, cpu_after, after) = samples
    failed = sum(outcome.errors.values())
    values = {
        "steps_per_second": (len(latencies) - failed) * job.steps / outcome.seconds,
        "p50": float(p50),
        "p99": float(p99),
        "server_cpu_per_step": (cpu_after - cpu_before) / max(1, (after - before) * job.steps),
        "client_cpu": outcome.cpu / (outcome.seconds + job.warmup),
        "errors": float(failed),
    }
    if outcome.lateness:
        values["late_p99"] = float(np.percentile(np.frombuffer(outcome.lateness), 99))
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
        return UnaryLane(connection, dialect.path, following, judge)
    return StreamLane(connection, dialect.path, first, following, judge)


def _judge(good: bytes) -> Judge:
    size = len(good)

    def judge(reply: bytes) -> Sequence[str]:
        return () if reply[:size] == good else ["REFUSED"]

    return judge
