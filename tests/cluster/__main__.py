"""`make kills`: servers are killed under many sessions, and rolled; what the sessions saw is printed.

Everything is real: servers, Envoy, Valkey, and the client library in processes of its own.
"""

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import get_args

import cyclopts
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.cluster.callers import Callers
from tests.cluster.cluster import Cluster, cluster
from tests.cluster.traffic import Durability, Load, run_in_processes
from tests.cluster.trouble import Told, Verdict, during, every, judge, kill_at_random, roll_all
from tests.support import models

_TAIL_SECONDS = 3.0  # for which sessions go on after the last trouble
_ROLL_SECONDS = 12.0
_CAPTION = """silence: the longest time between two answers of any session, round each trouble in the median / of all.
difference: the largest between an output and that of an uninterrupted run.
rate: steps a second that a session made, in the median. replayed: answers that had been lost, and were had again."""
_MODEL = models.lstm()


async def run(
    *,
    sessions: int = 200,
    rate: float = 20.0,
    kills: int = 20,
    interval: float = 2.0,
    processes: int = 2,
    servers: int = 3,
) -> bool:
    """Kill servers in ASYNC and in SYNC, and roll them.

    Parameters
    ----------
    sessions
        Sessions that are stepped.
    rate
        Steps a second of each.
    kills
        Servers that are killed.
    interval
        Seconds from one to the next.
    processes
        Processes of the client.
    servers
        Servers behind Envoy.
    """
    table = Table(
        "trouble", "durability", "steps", "lost", "doubled", "difference", "longest silence", "median", "rate"
    )
    right = True
    for durability in get_args(Durability):

        async def kill(them: Cluster, told: Told) -> list[float]:
            return await kill_at_random(them, kills, every(interval), told)

        async def roll(them: Cluster, told: Told) -> list[float]:
            callers = Callers(them.envoy.target, durability)  # noqa: B023 - awaited before the next turn
            async with asyncio.TaskGroup() as group:
                group.create_task(callers.run())
                moments = await roll_all(them, told)
                callers.end()
            return moments

        whole: list[tuple[str, Callable[[Cluster, Told], Awaitable[list[float]]], int, float]] = [
            (f"{kills} x SIGKILL", kill, kills, kills * interval),
            (f"{servers} x SIGTERM", roll, servers, _ROLL_SECONDS),
        ]
        for name, trouble, count, seconds in whole:
            steps = round(rate * (seconds + _TAIL_SECONDS))
            with Progress(console=Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as folder:
                task = progress.add_task(f"{name}, {durability}", total=count)
                models.publish(Path(folder, "models"), "lstm", _MODEL)
                async with cluster(Path(folder, "models"), Path(folder), servers=servers) as them:
                    load = Load(them.envoy.target, durability, rate, steps)
                    moments, seen = await during(
                        trouble(them, lambda: progress.advance(task)),  # noqa: B023 - called before the next turn
                        run_in_processes(load, sessions, processes),
                    )
            verdict = judge(_MODEL, seen, moments)
            table.add_row(name, durability, f"{sessions * steps:,}", *_figures(verdict))
            right &= verdict.right
    Console().print(table)
    return right


def _figures(verdict: Verdict) -> list[str]:
    return [
        str(verdict.lost),
        str(verdict.doubled),
        f"{verdict.difference:.1e}",
        str(verdict.replayed),
        f"{np.median(verdict.after) * 1e3:.0f} / {verdict.silences.max() * 1e3:.0f} ms",
        f"{verdict.rate:.1f}/s",
    ]


if __name__ == "__main__":
    app = cyclopts.App(result_action="return_value", help=__doc__)
    app.default(run)
    sys.exit(0 if app() else 1)
