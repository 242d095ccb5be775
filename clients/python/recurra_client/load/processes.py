"""A load in processes of its own: as many as it takes not to measure the load generator instead of the server."""

import asyncio
import multiprocessing
import signal
from collections.abc import Callable, MutableSequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from multiprocessing.sharedctypes import RawArray
from multiprocessing.synchronize import Barrier
from typing import Any, Final

from recurra.v1 import models_pb2

from recurra_client.load.generator import run_load
from recurra_client.load.lanes import RefusedError
from recurra_client.load.outcome import Outcome, Plan

_POLL_SECONDS: Final = 0.25
_START_SECONDS: Final = 120.0


class LoadError(Exception):
    """The load could not be run."""


def run_in_processes(plan: Plan, processes: int, watch: Callable[[int], None]) -> Outcome:
    """Run a load, its sessions shared out among processes that begin together.

    Args:
        plan: The load.
        processes: How many.
        watch: Called a few times a second with the number of messages answered so far.

    Raises:
        LoadError: It could not be run, with the reason.
    """
    context = multiprocessing.get_context("spawn")
    processes = min(processes, plan.sessions)
    progress = RawArray("Q", processes)
    barrier = context.Barrier(processes)
    workers = [_start(context, _share(plan, processes, index), barrier, progress, index) for index in range(processes)]
    outcomes: list[Outcome] = []
    try:
        for process, connection in workers:
            while not connection.poll(_POLL_SECONDS):
                watch(sum(progress))
                if not process.is_alive() and not connection.poll():
                    raise LoadError("a process of the load generator ended early")
            answer = connection.recv()
            if isinstance(answer, str):
                raise LoadError(answer)
            outcomes.append(answer)
    finally:
        for process, _ in workers:
            process.terminate()
            process.join()
    return _sum(outcomes)


def _start(
    context: SpawnContext, plan: Plan, barrier: Barrier, progress: Any, index: int
) -> tuple[Any, "Connection[Any, Any]"]:
    ours, theirs = context.Pipe(duplex=False)
    # Messages of protobuf cannot be sent to another process as they are.
    model, without_model = plan.model.SerializeToString(), replace(plan, model=None)  # type: ignore[arg-type]
    process = context.Process(target=_work, args=(without_model, model, barrier, progress, index, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _work(
    plan: Plan,
    model: bytes,
    barrier: Barrier,
    progress: MutableSequence[int],
    index: int,
    connection: "Connection[Any, Any]",
) -> None:
    """What one process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    allow_many_connections()
    plan = replace(plan, model=models_pb2.Model.FromString(model))
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            connection.send(runner.run(run_load(plan, lambda: _wait(barrier), progress, index)))
    except Exception as error:
        barrier.abort()
        known = getattr(error, "message", "") or (str(error) if isinstance(error, (OSError, RefusedError)) else "")
        connection.send(known or f"{type(error).__name__}: {error}")


def _wait(barrier: Barrier) -> None:
    barrier.wait(_START_SECONDS)


def allow_many_connections() -> None:
    """Raise the number of files that this process may open, each connection being one, to the most it may ask for."""
    try:
        import resource  # noqa: PLC0415 - not on Windows, where there is no such limit
    except ImportError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - only in the server extra
    except ImportError:
        return None
    return uvloop.new_event_loop


def _share(plan: Plan, processes: int, index: int) -> Plan:
    """The part of a plan for one of several processes."""
    sessions = plan.sessions // processes + (index < plan.sessions % processes)
    connections = -(-plan.connections // processes)
    return replace(plan, sessions=sessions, connections=connections, arrivals=plan.arrivals / processes)


def _sum(outcomes: list[Outcome]) -> Outcome:
    total = Outcome()
    for outcome in outcomes:
        total.steps += outcome.steps
        total.cpu += outcome.cpu
        total.seconds = max(total.seconds, outcome.seconds)
        total.refused.update(outcome.refused)
        total.errors.update(outcome.errors)
        total.latencies.extend(outcome.latencies)
        total.lateness.extend(outcome.lateness)
    return total
