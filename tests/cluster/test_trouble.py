"""A few sessions, a few kills, one roll-out: the small brother of `make kills`."""

import asyncio
from pathlib import Path
from typing import get_args

import pytest

from tests.cluster.callers import Callers
from tests.cluster.cluster import Cluster, cluster
from tests.cluster.traffic import Durability, Load, Progress, Seen, run_sessions
from tests.cluster.trouble import during, judge, kill_at_random, roll_all
from tests.support import models

SESSIONS = 6  # of each durability
RATE = 20.0
MODEL = models.lstm()
pytestmark = pytest.mark.e2e


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    models.publish(tmp_path / "models", "lstm", MODEL)
    return tmp_path / "models"


async def test_servers_are_killed_and_no_step_is_lost_or_applied_twice(repository: Path, tmp_path: Path) -> None:
    async with cluster(repository, tmp_path) as them:
        progress = Progress()

        async def kill() -> list[float]:
            moments = await kill_at_random(them, 4, lambda: progress.further(250))
            progress.over = True
            return moments

        moments, seen = await during(kill(), run_both(them, progress))
    check(seen, moments)


async def test_servers_are_rolled_and_no_call_fails(repository: Path, tmp_path: Path) -> None:
    async with cluster(repository, tmp_path) as them:
        progress, callers = Progress(), Callers(them.envoy.target, "async", count=1)

        async def roll() -> list[float]:
            async with asyncio.TaskGroup() as group:
                group.create_task(callers.run())
                await progress.further(250)
                moments = await roll_all(them)
                await progress.further(250)
                progress.over = True
                callers.end()
            return moments

        moments, seen = await during(roll(), run_both(them, progress))
    check(seen, moments)
    assert callers.calls > 0


async def run_both(them: Cluster, progress: Progress) -> list[Seen]:
    """Run sessions of both kinds until the trouble is over."""
    loads = [Load(them.envoy.target, durability, RATE, steps=10_000) for durability in get_args(Durability)]
    parts = await asyncio.gather(*(run_sessions(load, range(SESSIONS), progress) for load in loads))
    return [seen for part in parts for seen in part]


def check(seen: list[Seen], moments: list[float]) -> None:
    """All steps were applied once, and trouble came while they were made."""
    verdict = judge(MODEL, seen, moments)
    assert verdict.right, verdict
    assert verdict.after.min() > 0
