"""Sessions that are stepped at a pace, as sensors and microphones step them, and what they saw."""

import asyncio
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import uvloop
from numpy.typing import NDArray
from recurra_client import Client

FEATURES = 16
Durability = Literal["async", "sync"]


@dataclass(frozen=True, slots=True)
class Load:
    """What sessions do.

    Attributes:
        target: Where they go.
        durability: Theirs.
        rate: Steps a second.
        steps: How many each makes, if it is not told to end before.
    """

    target: str
    durability: Durability
    rate: float
    steps: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What one session saw.

    Attributes:
        number: Its own.
        outputs: [T], of all its steps.
        answered: [T], when each answer came, in seconds of the machine's monotonic clock.
        applied: How many steps the server had counted in the end.
        replayed: How many answers were kept ones: the first one had been lost.
    """

    number: int
    outputs: NDArray[Any]
    answered: NDArray[np.float64]
    applied: int
    replayed: int


def inputs(number: int, steps: int) -> NDArray[np.float32]:
    """What the session of this number is stepped with, [T, features]; of more steps, the first are the same."""
    return np.random.default_rng(number).normal(size=(steps, FEATURES)).astype(np.float32)


async def run_in_processes(load: Load, sessions: int, processes: int) -> list[Seen]:
    """Run sessions, their clients in several processes."""
    bounds = [sessions * k // processes for k in range(processes + 1)]
    numbers = [range(first, end) for first, end in pairwise(bounds)]
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        parts = await asyncio.gather(*(loop.run_in_executor(pool, _run_process, load, part) for part in numbers))
    return [seen for part in parts for seen in part]


def _run_process(load: Load, numbers: range) -> list[Seen]:
    return uvloop.run(run_sessions(load, numbers, Progress()))


class Progress:
    """Counts answers, wakes who waits for more of them, and tells the sessions when to end.

    Attributes:
        over: Whether they are to.
    """

    def __init__(self) -> None:
        self.over = False
        self._answers = 0
        self._more = asyncio.Event()

    def told(self) -> None:
        """One more."""
        self._answers += 1
        self._more.set()

    async def further(self, answers: int) -> None:
        """Wait for so many more."""
        until = self._answers + answers
        while self._answers < until:
            self._more.clear()
            await self._more.wait()


async def run_sessions(load: Load, numbers: range, progress: Progress, per_client: int = 25) -> list[Seen]:
    """Run sessions side by side, some to a client."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_run_client(load, numbers[first : first + per_client], progress))
            for first in range(0, len(numbers), per_client)
        ]
    return [seen for task in tasks for seen in task.result()]


async def _run_client(load: Load, numbers: range, progress: Progress) -> list[Seen]:
    async with Client(load.target, timeout=60, reconnect=60) as client, asyncio.TaskGroup() as group:
        tasks = [group.create_task(_run_session(client, load, number, progress)) for number in numbers]
    return [task.result() for task in tasks]


async def _run_session(client: Client, load: Load, number: int, progress: Progress) -> Seen:
    """Step one session to its end. A step that is late is made at once, and the ones after it when they are due."""
    xs, outputs, answered, replayed = inputs(number, load.steps), [], [], 0
    pause = 1 / load.rate
    due = time.monotonic() + number % 97 / 97 * pause  # not all in step
    async with client.session("lstm", durability=load.durability) as session:
        for k, x in enumerate(xs):
            await asyncio.sleep(max(0.0, due + k * pause - time.monotonic()))
            outputs.append(await session.step(x))
            answered.append(time.monotonic())
            replayed += session.last.replayed
            progress.told()
            if progress.over:
                break
        applied = (await session.info()).steps
    return Seen(number, np.concatenate(outputs), np.array(answered), applied, replayed)
