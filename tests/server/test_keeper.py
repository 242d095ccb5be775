"""How workers are begun, at first and anew, by the one that keeps them."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest
from recurra_server import workers as module
from recurra_server.settings import Settings
from recurra_server.starting import StartError
from recurra_server.worker import BEGIN, GOES_ON, READY, Begin, Ready
from recurra_server.workers import Workers

from tests.support import models
from tests.support.server import alive


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    models.publish(tmp_path, "counter", models.counter())
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.0)
    return Settings(models=tmp_path, port=0, metrics=False, workers=1, drain_seconds=0.0)


class Turn(asyncio.Lock):
    """A lock that tells when somebody asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def acquire(self) -> Literal[True]:
        self.asked.set()
        return await super().acquire()


@asynccontextmanager
async def kept(settings: Settings) -> AsyncIterator[tuple[Workers, "asyncio.Future[None]"]]:
    """Workers that serve, and what is done when they have ended."""
    workers, ready = Workers(settings), asyncio.Event()
    running = asyncio.ensure_future(workers.run(lambda _: ready.set()))
    async with asyncio.timeout(60):
        await ready.wait()
        yield workers, running
        await running


def kill(workers: Workers) -> None:
    """End the only worker."""
    os.kill(workers._running[0].process.pid, signal.SIGKILL)


async def test_whatever_keeps_a_worker_from_being_started_anew_does_so_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: asyncio.Queue[asyncio.subprocess.Process] = asyncio.Queue()
    spawn, hear = module._spawn, module._hear

    async def spawn_and_tell() -> asyncio.subprocess.Process:
        process = await spawn()
        started.put_nowait(process)
        return process

    async def fail_once(*_: object) -> Ready:
        monkeypatch.setattr(module, "_hear", hear)
        raise OSError("the disk has gone")

    async with kept(settings) as (workers, _):
        first = workers._changes.members[0]
        monkeypatch.setattr(module, "_spawn", spawn_and_tell)
        monkeypatch.setattr(module, "_hear", fail_once)
        kill(workers)
        failed = await started.get()
        anew = await started.get()
        assert failed.returncode is not None, "nothing is left of it"
        async with workers._changes.one_at_a_time:  # it serves
            assert workers._running[0].process is anew
            assert await workers._changes.members[0].responds(30)
        assert workers._changes.members[0] is not first
        signal.raise_signal(signal.SIGTERM)


async def test_none_is_started_anew_after_all_were_told_to_end(settings: Settings) -> None:
    async with kept(settings) as (workers, running):
        workers._changes.one_at_a_time = turn = Turn()
        async with turn:  # something changes
            turn.asked.clear()
            kill(workers)
            await turn.asked.wait()
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0)
            assert not running.done()
        await running
    assert not workers._running


async def test_one_that_was_being_started_when_all_were_told_to_end_does_not_begin(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn, started = module._spawn, []

    async def spawn_meanwhile() -> asyncio.subprocess.Process:
        process = await spawn()
        started.append(process)
        workers._end()
        return process

    monkeypatch.setattr(module, "_spawn", spawn_meanwhile)
    workers = Workers(settings)
    with pytest.raises(StartError, match="told to end"):
        async with asyncio.timeout(30) as limit:
            await workers.run(lambda _: None)
    assert not limit.expired()
    assert not [process for process in started if alive(process.pid)]


async def test_a_worker_says_with_each_model_that_it_goes_on(settings: Settings) -> None:
    models.publish(settings.models, "counter", models.counter(), "2").write_bytes(b"broken")
    models.publish(settings.models, "other", models.counter())
    process = await module._spawn()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(BEGIN.dump_json(Begin(settings)) + b"\n")
    said = 0
    while (line := await process.stdout.readline()) == GOES_ON:
        said += 1
    assert said >= 3
    assert len(READY.validate_json(line).models) == 2
    process.kill()
    await process.wait()


async def test_one_that_goes_on_may_take_as_long_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, lines, late = asyncio.get_running_loop(), asyncio.StreamReader(), 0.0
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + late)
    hearing = asyncio.ensure_future(module._hear(lines, 30.0))
    for _ in range(4):
        late += 20
        lines.feed_data(GOES_ON)
        for _ in range(5):  # as many turns as it takes to hear that, and for a time to be over
            await asyncio.sleep(0)
        assert not hearing.done()
    late += 40
    assert (await asyncio.wait_for(hearing, 100)).error == "a worker that was to begin has said nothing for 30 s"
