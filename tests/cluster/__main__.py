"""`make kills`: servers are killed under many sessions, and rolled; what the sessions saw is printed.

Everything is real: servers, Envoy, Valkey, and the client library in processes of its own.
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import get_args

import cyclopts
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.cluster.callers import Callers
from tests.cluster.cluster import Cluster, cluster
from tests.cluster.traffic import Durability, Load, run_in_processes
from tests.cluster.trouble import Told, Verdict, during, every, judge, kill_at_random, roll_all
from tests.support import models

_TAIL_SECONDS = 3.0  # for which sessions go on after the last trouble
_ROLL_SECONDS = 4.0  # that a server takes to be rolled, about
_COLUMNS = ("", "durability", "steps", "lost", "doubled", "difference", "silence", "longest", "start", "rate")
_MEANING = """
difference  the largest between an output and that of an uninterrupted run
silence     the longest time between two answers of any session that a kill or roll lies in, in the median of those
longest     the longest time between two answers of any session, ever
start       from the start of a server until it served, in the median
rate        steps a second that a session made, in the median
"""
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
    """Kill servers and roll them, under ASYNC and under SYNC sessions; tell whether all went right.

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
    table, right = Table(*_COLUMNS, box=box.MARKDOWN), True
    for durability in get_args(Durability):
        for kill in (True, False):
            count = kills if kill else servers
            seconds = _TAIL_SECONDS + count * (interval if kill else _ROLL_SECONDS)
            name = f"{count} x {'SIGKILL' if kill else 'SIGTERM'}"
            with Progress(console=Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as name_of_folder:
                bar, folder = progress.add_task(f"{name}, {durability}", total=count), Path(name_of_folder)
                models.publish(folder / "models", "lstm", _MODEL)
                async with cluster(folder / "models", folder, servers=servers) as them:
                    load = Load(them.envoy.target, durability, rate, round(rate * seconds))

                    def told() -> None:
                        progress.advance(bar)  # noqa: B023 - called before the next turn

                    trouble = kill_at_random(them, kills, every(interval), told) if kill else _roll(them, load, told)
                    moments, seen = await during(trouble, run_in_processes(load, sessions, processes))
            verdict = judge(_MODEL, seen, moments)
            right &= verdict.right
            table.add_row(name, durability, f"{sessions * load.steps:,}", *_figures(verdict, them.starts))
    console = Console(width=120)
    console.print(table)
    console.print(_MEANING)
    return right


async def _roll(them: Cluster, load: Load, told: Told) -> list[float]:
    """Roll all servers while other callers make calls of all kinds, of which none may fail."""
    callers = Callers(load.target, load.durability)
    async with asyncio.TaskGroup() as group:
        group.create_task(callers.run())
        moments = await roll_all(them, told)
        callers.end()
    return moments


def _figures(verdict: Verdict, starts: list[float]) -> list[str]:
    return [
        str(verdict.lost),
        str(verdict.doubled),
        f"{verdict.difference:.1e}",
        f"{np.median(verdict.after):.2f} s",
        f"{verdict.silences.max():.2f} s",
        f"{np.median(starts):.1f} s",
        f"{verdict.rate:.1f}/s",
    ]


if __name__ == "__main__":
    app = cyclopts.App(result_action="return_value", help=__doc__)
    app.default(run)
    sys.exit(0 if app() else 1)
