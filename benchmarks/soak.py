"""`python -m benchmarks.soak --minutes 60`: a server under load for long, with callers who come, go, and vanish.

At 70 % of what it can do in a closed loop, sessions are opened at the pace of steps, expire, are closed, and lose their
connections in the middle. Prints how resident memory grew after the first tenth, what is left when all are gone, and
p99 of the last sixth against the first.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
import urllib.request
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from recurra_client import Client, RecurraError
from rich.console import Console
from rich.progress import Progress

from benchmarks.client import in_loop
from benchmarks.models import publish
from benchmarks.processes import free_port, resident_bytes, running

_MODEL: Final = "lstm-128"
_SESSIONS: Final = 64
_SHARE: Final = 0.7
_IDLE: Final = 2.0  # seconds after which a session expires


@dataclass
class Seen:
    """What the soak has found."""

    answered: "array[float]" = field(default_factory=lambda: array("d"))
    """When each step was answered, in seconds from the beginning; millions of them, so no list."""
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    """How long it took, in seconds."""
    memory: list[tuple[float, int]] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)

    def count(self, where: dict[str, int], what: str) -> None:
        """One more."""
        where[what] = where.get(what, 0) + 1


async def _caller(target: str, seen: Seen, began: float, until: float, pace: float, rng: random.Random) -> None:
    """One caller after another: each opens a session, steps it at a pace, and ends in one of several ways."""
    x = np.zeros(16, np.float32)
    while time.monotonic() < until:
        how = rng.choice(("closes", "lets it expire", "vanishes"))
        client = Client(target, reconnect=0)
        session = client.session(_MODEL, idle_timeout=_IDLE, keep=how != "closes")
        try:
            await session.open()
            for _ in range(rng.randrange(20, 400)):
                due = time.monotonic() + pace
                asked = time.perf_counter()
                await session.step(x)
                seen.latencies.append(time.perf_counter() - asked)
                seen.answered.append(time.monotonic() - began)
                if (left := due - time.monotonic()) > 0:
                    await asyncio.sleep(left)
                if time.monotonic() > until:
                    break
            if how == "vanishes":  # in the middle of a step
                step = asyncio.ensure_future(session.step(x))
                await asyncio.sleep(0)
                await client.close()
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)
            else:
                await session.close()
        except RecurraError as error:
            seen.count(seen.errors, error.reason)
            await asyncio.sleep(0.1)
        finally:
            with contextlib.suppress(Exception):
                await client.close()
        seen.count(seen.ends, how)


async def _soak(target: str, pid: int, seconds: float, pace: float, seed: int) -> Seen:
    seen, began = Seen(), time.monotonic()
    rng = random.Random(seed)
    callers = [
        asyncio.create_task(_caller(target, seen, began, began + seconds, pace, random.Random(rng.random())))
        for _ in range(_SESSIONS)
    ]
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("soaking", total=seconds)
        while time.monotonic() < began + seconds:
            seen.memory.append((time.monotonic() - began, resident_bytes([pid])))
            progress.update(task, completed=time.monotonic() - began)
            await asyncio.sleep(min(5.0, seconds / 50))
        await asyncio.gather(*callers)
    return seen


_HELD: Final = {
    "recurra_sessions": "sessions",
    "recurra_state_bytes": "bytes of state",
    "recurra_queue_depth": "steps",
    "recurra_streams": "streams",
    "recurra_tasks": "tasks",
    "process_open_fds": "open files",
}


def _held(metrics_port: int) -> dict[str, int]:
    """What the server holds, most of it for callers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    values = {name.partition("{")[0]: value for name, _, value in samples}  # of the only model
    return {words: int(float(values[name])) for name, words in _HELD.items()}


def main() -> int:
    """The command."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=60.0)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    seconds = given.minutes * 60
    with tempfile.TemporaryDirectory() as folder:
        publish(Path(folder), _MODEL, 128)
        port, metrics_port = free_port(), free_port()
        command: list[str | Path] = [
            Path(sys.executable).with_name("recurra"),
            "serve",
            "--models",
            folder,
            "--admit-below",
            "0",
            # What it remembers of expired sessions grows for hours, up to a bound: here to one that is soon reached.
            "--max-tombstones",
            "1000",
        ]
        with running([*command, "--port", str(port), "--metrics-port", str(metrics_port)], port) as pid:
            target = f"127.0.0.1:{port}"
            empty = _held(metrics_port)
            capacity = _capacity(target, seconds)
            _left(metrics_port, empty)
            before = _held(metrics_port)  # with what is opened once, for the first callers
            pace = _SESSIONS / (_SHARE * capacity)
            print(f"{capacity:,.0f} steps/s in a closed loop of these callers; {_SHARE:.0%} of it is a step every "
                  f"{pace * 1e3:.1f} ms of {_SESSIONS} callers")  # fmt: skip
            seen = in_loop(_soak(target, pid, seconds, pace, given.seed))
            left = _left(metrics_port, before)
            _report(seen, seconds)
            print(f"left over when all had gone: {left or 'nothing'} (before all came: {before})")
            return 1 if left else 0


def _left(metrics_port: int, before: dict[str, int]) -> dict[str, int]:
    """What there is more of than before, once the last session has had time to expire."""
    end = time.monotonic() + 30
    while True:
        now = _held(metrics_port)
        more = {words: count - before[words] for words, count in now.items() if count > before[words]}
        if not more or time.monotonic() >= end:
            return more
        time.sleep(0.5)


def _capacity(target: str, seconds: float) -> float:
    """Steps a second of the same callers without a pause."""
    short = min(10.0, seconds / 6)
    seen = Seen()

    async def closed() -> None:
        began = time.monotonic()
        rng = random.Random(1)
        await asyncio.gather(
            *(_caller(target, seen, began, began + short, 0.0, random.Random(rng.random())) for _ in range(_SESSIONS))
        )

    in_loop(closed())
    return len(seen.latencies) / short


def _report(seen: Seen, seconds: float) -> None:
    times, taken = np.array(seen.answered), np.array(seen.latencies)
    part = seconds / 6
    first, last = (np.percentile(taken[mask], 99) for mask in (times < part, times >= seconds - part))
    warm = [(when, size) for when, size in seen.memory if when > seconds / 10]
    slope = float(np.polyfit([when / 3600 for when, _ in warm], [size / 2**20 for _, size in warm], 1)[0])
    print(f"{len(taken):,} steps of {sum(seen.ends.values()):,} sessions, which ended so: {seen.ends}")
    print(f"errors: {seen.errors or 'none'}")
    print(f"p99: {first * 1e3:.2f} ms in the first sixth, {last * 1e3:.2f} ms in the last: {last / first:.2f} of it")
    print(f"resident memory: {warm[0][1] / 2**20:.1f} MiB after a tenth, {warm[-1][1] / 2**20:.1f} MiB at the end, "
          f"{slope:+.2f} MiB an hour")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
