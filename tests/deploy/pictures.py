"""Plays some minutes of load and trouble, and draws the dashboards of it: `python -m tests.deploy.pictures FOLDER`."""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from recurra.v1 import sessions_pb2

from deploy.grafana.draw import Source, draw_all
from tests.deploy.promql import ROOT
from tests.deploy.scene import Scene, running_scene
from tests.support.prometheus import Prometheus, running_prometheus

_RULES = ROOT / "deploy" / "prometheus" / "recurra.rules.yml"
_SECONDS = 180.0
_OVER = 12.0


async def _play(scene: Scene, prometheus: Prometheus, seconds: float) -> None:
    """Load that grows, all that callers can do wrong, a model that cannot be loaded, a store that dies and is back."""
    part = seconds / 6
    async with scene.sessions(8, 4) as few:
        await scene.step(few, part, pace=0.1)
        async with scene.sessions(20, 10) as many:
            await asyncio.gather(scene.step(few + many, 3 * part, pace=0.05), _trouble(scene, part))
        await scene.fill(refused=30)
        await asyncio.gather(scene.step(few, part, pace=0.1), _lose_the_store(scene, part))
    await asyncio.to_thread(prometheus.settle)


async def _trouble(scene: Scene, part: float) -> None:
    await asyncio.sleep(part / 2)
    await scene.trouble(8)
    scene.spoil_a_model()
    await asyncio.sleep(part / 2)
    await scene.trouble(4)


async def _lose_the_store(scene: Scene, part: float) -> None:
    caller = scene.caller(scene.many)
    session = await caller.open("counter", durability=sessions_pb2.DURABILITY_ASYNC)
    scene.kill_store()
    until = time.monotonic() + part / 2
    while time.monotonic() < until:
        await caller.step(session, 1.0)
        await asyncio.sleep(0.1)
    await asyncio.to_thread(scene.valkey.start)


def main(folder: Path, seconds: float) -> None:
    """Write a picture of each dashboard into the folder."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        with (
            running_scene(root / "scene") as scene,
            running_prometheus(root / "prometheus", _RULES, scene.targets, every=1.0) as prometheus,
        ):
            began = time.time()
            asyncio.run(_play(scene, prometheus, seconds))
            draw_all(folder, Source(prometheus.url, began + _OVER / 2, time.time() - 1, _OVER))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else _SECONDS)
