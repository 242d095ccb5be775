"""What befalls the servers while sessions are stepped, and what the sessions say of it."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from tests.cluster.cluster import Cluster
from tests.cluster.traffic import Seen, inputs

TOLERANCE = 1e-5
Told = Callable[[], object]


async def kill_at_random(
    cluster: Cluster, kills: int, turn: Callable[[], Awaitable[object]], told: Told = lambda: None, seed: int = 1
) -> list[float]:
    """Kill a server at every turn, and start it again; returns when each was killed.

    Where starting takes longer than that, it waits until two serve: without a server there is only a starting time to
    be seen.
    """
    chosen, starting, moments = random.Random(seed), dict[int, asyncio.Task[None]](), []
    for _ in range(kills):
        await turn()
        while len(alive := [place for place in range(len(cluster.servers)) if place not in starting]) < 2:
            await asyncio.wait(starting.values(), return_when=asyncio.FIRST_COMPLETED)
        place = chosen.choice(alive)
        moments.append(time.monotonic())
        starting[place] = task = asyncio.create_task(cluster.kill(place))
        task.add_done_callback(lambda _, place=place: starting.pop(place))  # type: ignore[misc]
        told()
    await asyncio.gather(*starting.values())
    return moments


def every(seconds: float) -> Callable[[], Awaitable[None]]:
    """A turn that comes once in so many seconds."""
    due = time.monotonic()

    async def turn() -> None:
        nonlocal due
        due += seconds
        await asyncio.sleep(max(0.0, due - time.monotonic()))

    return turn


async def roll_all(cluster: Cluster, told: Told = lambda: None) -> list[float]:
    """End the servers in order, one after the other, each when the one before gets calls again."""
    moments = []
    for place in range(len(cluster.servers)):
        moments.append(time.monotonic())
        await cluster.roll(place)
        told()
    return moments


async def during(trouble: Awaitable[list[float]], traffic: Awaitable[list[Seen]]) -> tuple[list[float], list[Seen]]:
    """Have trouble and traffic at the same time, to the end of both."""
    async with asyncio.TaskGroup() as group:
        troubled, stepped = (group.create_task(_awaited(work)) for work in (trouble, traffic))
    return troubled.result(), stepped.result()  # type: ignore[return-value]


async def _awaited(work: Awaitable[object]) -> object:
    return await work


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether all steps were applied once, and what the sessions felt.

    Attributes:
        lost: Steps that the servers did not count in the end.
        doubled: Steps that they counted too much.
        difference: The largest between an output and that of an uninterrupted run.
        replayed: Answers whose first sending was lost.
        silences: [sessions], the longest time between two answers of each, in seconds.
        after: [moments], the longest time between two answers of any session that a moment lies in.
        rate: Steps a second that a session made, in the median.
    """

    lost: int
    doubled: int
    difference: float
    replayed: int
    silences: NDArray[np.float64]
    after: NDArray[np.float64]
    rate: float

    @property
    def right(self) -> bool:
        """Exactly its steps, and the right outputs, for every session."""
        return not self.lost and not self.doubled and self.difference <= TOLERANCE


def judge(model: onnx.ModelProto, seen: Sequence[Seen], moments: Sequence[float]) -> Verdict:
    """Compare with ONNX Runtime, which runs all sequences whole."""
    expected = _run_whole(model, seen)
    counts = np.array([one.applied - len(one.answered) for one in seen])
    gaps = [np.diff(one.answered) for one in seen]
    return Verdict(
        lost=int(-counts[counts < 0].sum()),
        doubled=int(counts[counts > 0].sum()),
        difference=max(
            float(np.abs(one.outputs - outputs[: len(one.outputs)]).max())
            for one, outputs in zip(seen, expected, strict=True)
        ),
        replayed=sum(one.replayed for one in seen),
        silences=np.array([gap.max() for gap in gaps]),
        after=np.array([max(_gap_at(one.answered, moment) for one in seen) for moment in moments]),
        rate=float(np.median([1 / gap.mean() for gap in gaps])),
    )


def _run_whole(model: onnx.ModelProto, seen: Sequence[Seen]) -> NDArray[np.float32]:
    """The outputs of an uninterrupted run, [sessions, T]."""
    steps = max(len(one.outputs) for one in seen)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feed = {"x": np.stack([inputs(one.number, steps) for one in seen])}
    for state in session.get_inputs():
        shape = [len(seen) if isinstance(dim, str) else dim for dim in state.shape]
        feed.setdefault(state.name, np.zeros(shape, np.float32))
    (outputs,) = session.run(["y"], feed)
    return np.asarray(outputs).reshape(len(seen), steps)


def _gap_at(answered: NDArray[np.float64], moment: float) -> float:
    """The time between the two answers that a moment lies between; 0 where it lies outside."""
    behind = int(np.searchsorted(answered, moment))
    return float(answered[behind] - answered[behind - 1]) if 0 < behind < len(answered) else 0.0
