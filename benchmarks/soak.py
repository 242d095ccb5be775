"""`python -m benchmarks.soak --minutes 60`: a server under load for long, with callers who come, go, and vanish.

Visitors come all the time: each opens a session, steps it for a while, and closes it, lets it expire, or loses its
connection in the middle of a step. Beside them are sessions that step every 32 ms, as many as 70 % of those that the
server can serve in time (the knee of docs/performance.md); they begin anew every minute (a sixtieth of the time).

Prints p99 of the last sixth against the first, how resident memory grew after the first tenth, and what is left when
all are gone. A sixth's p99 is the median of its seconds', each of thousands of steps: whole minutes differ threefold by
what else the machine does, which is printed beside it. Fails where there were errors, where something is left, and
where the last sixth's p99 is over 1.2 of the first's.
"""

import argparse
import asyncio
import contextlib
import gc
import os
import random
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from recurra_client import Client, RecurraError
from recurra_client.load.frames import StreamEndedError
from recurra_client.load.lanes import RefusedError
from rich.console import Console
from rich.progress import Progress

from benchmarks.client import ClientProcess, Values, in_loop, load
from benchmarks.models import publish
from benchmarks.parts.paced import PACE, most, within_deadline
from benchmarks.processes import free_port, resident_bytes, running

_MODEL: Final = "lstm-128"
_SHARE: Final = 0.7  # of the sessions that can be served
_FIRST: Final = 256  # that are tried
_FINENESS: Final = 1 / 8  # of the knee
_VISITORS: Final = 8
_IDLE: Final = 2.0  # seconds after which a visitor's session expires
_P99: Final = "p99_of_seconds"
_SLOWER: Final = 1.2  # of what p99 was at the beginning, at most, may it be at the end
_KEPT: Final = 400  # bytes that gRPC keeps of a caller who vanishes: https://github.com/grpc/grpc/issues/43360


@dataclass
class Visits:
    """What visitors have seen."""

    steps: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)


@dataclass
class Seen:
    """What the soak has found."""

    visits: Visits
    minutes: list[tuple[float, Values]]
    """When each began, in seconds from the beginning, and what `load` found."""
    memory: list[tuple[float, int]]
    """When, and bytes."""
    broken: Counter[str]
    """Minutes that ended early, by the reason."""

    @property
    def errors(self) -> Counter[str]:
        """All there were, by the reason."""
        steady = int(sum(values["errors"] for _, values in self.minutes))
        return +(self.visits.errors + self.broken + Counter({"of the steady load": steady}))

    def sixths(self, name: str, seconds: float) -> list[NDArray[np.float64]]:
        """What each minute of each sixth of so many seconds found, in ms."""
        where = [min(5, int(when / seconds * 6)) for when, _ in self.minutes]
        found = np.array([values[name] * 1e3 for _, values in self.minutes], np.float64)
        return [found[np.equal(where, sixth)] for sixth in range(6)]

    def growth(self, name: str, seconds: float) -> float | None:
        """The last sixth's median over the first's; None where a sixth is unknown."""
        first, *_, last = self.sixths(name, seconds)
        return float(np.median(last) / np.median(first)) if first.size and last.size else None


async def _visitor(target: str, seen: Visits, until: float, rng: random.Random) -> None:
    """One caller after another: each opens a session, steps it at a pace, and ends in one of several ways."""
    x = np.zeros(16, np.float32)
    while time.monotonic() < until:
        how = rng.choice(("closes", "lets it expire", "vanishes"))
        # Channels of the same options share a connection: nobody else has this keep-alive.
        client = Client(target, reconnect=0, keepalive=rng.uniform(1e3, 1e6))
        session = client.session(_MODEL, idle_timeout=_IDLE, keep=how != "closes")
        try:
            await session.open()
            for _ in range(rng.randrange(1, 40)):
                await session.step(x)
                seen.steps += 1
                await asyncio.sleep(PACE)
            if how == "vanishes":  # in the middle of a step
                step = asyncio.ensure_future(session.step(x))
                await asyncio.sleep(0)
                await client.close()
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)
            else:
                await session.close()
        except RecurraError as error:
            seen.errors[error.reason] += 1
            await asyncio.sleep(0.1)
        finally:
            with contextlib.suppress(Exception):
                await client.close()
        seen.ends[how] += 1


def visit(target: str, seconds: float, seed: int) -> Visits:
    """Visit a server for so many seconds."""

    async def all_visit() -> Visits:
        seen, until, rng = Visits(), time.monotonic() + seconds, random.Random(seed)
        visitors = (_visitor(target, seen, until, random.Random(rng.random())) for _ in range(_VISITORS))
        await asyncio.gather(*visitors)
        gc.collect()  # gRPC's calls are cycles, and hold their connections
        return seen

    return in_loop(all_visit())


@dataclass(frozen=True)
class Soak:
    """Where it happens.

    Attributes:
        target: HOST:PORT of the server.
        pid: Its process.
        steady: Where the load comes from.
        others: Where the visitors come from.
    """

    target: str
    pid: int
    steady: ClientProcess
    others: ClientProcess

    def load(self, sessions: int, seconds: float) -> "Future[Values]":
        """Begin to load it with so many sessions."""
        plan = {"sessions": sessions, "seconds": seconds, "pace": PACE}
        return self.steady.begin(load, self.target, self.pid, _MODEL, **plan)

    def knee(self, seconds: float) -> int:
        """The most sessions that are served in time beside visitors, each number tried for so many seconds."""

        def kept(sessions: int) -> bool:
            steady = self.load(sessions, seconds)
            self.others.run(visit, self.target, seconds, 0)
            return within_deadline(steady.result())

        return most(kept, _FIRST, _FINENESS)

    def run(self, sessions: int, seconds: float, seed: int) -> Seen:
        """Soak it."""
        began = time.monotonic()
        visits = self.others.begin(visit, self.target, seconds, seed)
        minutes, memory, broken = [], [], Counter[str]()
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("soaking", total=seconds)
            while (left := began + seconds - time.monotonic()) > seconds / 600:
                when = time.monotonic() - began
                minute = self.load(sessions, min(seconds / 60, left))
                while not minute.done():
                    wait([minute], timeout=min(5.0, seconds / 50))
                    memory.append((time.monotonic() - began, resident_bytes([self.pid])))
                    progress.update(task, completed=time.monotonic() - began)
                try:
                    minutes.append((when, minute.result()))
                except (StreamEndedError, RefusedError, OSError) as error:  # of one, and with it all of this minute
                    broken[str(error)] += 1
        return Seen(visits.result(), minutes, memory, broken)


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
        ports = "--port", str(port), "--metrics-port", str(metrics_port)
        with running([*command, *ports], port) as pid, ClientProcess() as steady, ClientProcess() as others:
            others.run(os.nice, 10)  # visitors cost far more than the server takes for them
            soak = Soak(f"127.0.0.1:{port}", pid, steady, others)
            empty = _held(metrics_port)
            knee = soak.knee(min(4.0, seconds / 15))
            _left(metrics_port, empty)
            before = _held(metrics_port)  # with what is opened once, for the first callers
            sessions = round(_SHARE * knee)
            print(f"{knee} sessions are served in time beside visitors; {sessions} of them from now on")
            seen = soak.run(sessions, seconds, given.seed)
            left = _left(metrics_port, before)
            _report(seen, seconds, sessions)
            print(f"left over when all had gone: {left or 'nothing'} (before all came: {before})")
            return _verdict(seen, seconds, left)


def _left(metrics_port: int, before: dict[str, int]) -> dict[str, int]:
    """What there is more of than before, once the last session has had time to expire."""
    end = time.monotonic() + 30
    while True:
        now = _held(metrics_port)
        more = {words: count - before[words] for words, count in now.items() if count > before[words]}
        if not more or time.monotonic() >= end:
            return more
        time.sleep(0.5)


def _report(seen: Seen, seconds: float, sessions: int) -> None:
    steady = sum(values["steps_per_second"] for _, values in seen.minutes) / max(1, len(seen.minutes))
    visits = seen.visits
    print(f"{steady:,.0f} steps/s, of {len(seen.minutes) * sessions:,} sessions")
    print(f"visitors: {visits.steps:,} steps, of {visits.ends.total():,} sessions, which ended so: {dict(visits.ends)}")
    print(f"errors: {dict(seen.errors) or 'none'}")
    for name, words in (("p50", "p50"), ("p99", "p99 of whole minutes"), (_P99, "p99")):
        print(f"{words} in each sixth, in ms: {', '.join(map(_spread, seen.sixths(name, seconds)))}")
        if (growth := seen.growth(name, seconds)) is not None:
            print(f"{words}: the last is {growth:.2f} of the first")
    warm = [(when, size) for when, size in seen.memory if when > seconds / 10]
    slope = float(np.polyfit([when / 3600 for when, _ in warm], [size / 2**20 for _, size in warm], 1)[0])
    print(f"resident memory: {warm[0][1] / 2**20:.1f} MiB after a tenth, {warm[-1][1] / 2**20:.1f} MiB at the end, "
          f"{slope:+.2f} MiB an hour")  # fmt: skip
    kept = visits.ends["vanishes"] * _KEPT / 2**20
    print(f"of that gRPC keeps of those who vanish some {kept / (seconds / 3600):.2f} MiB an hour")


def _verdict(seen: Seen, seconds: float, left: dict[str, int]) -> int:
    """Say in a line what is not as promised, if anything is: the exit status.

    Memory is left to whoever reads: what gRPC keeps is known only roughly, and is more than a small leak of ours would
    be. Sessions, steps, streams and tasks that are not given back are among the leftovers.
    """
    growth = seen.growth(_P99, seconds)
    wrong = ["errors"] if seen.errors else []
    if left:
        wrong.append("leftovers")
    if growth is not None and growth > _SLOWER:
        wrong.append(f"p99, {growth:.2f} of what it was")
    if wrong:
        print(f"not as promised: {'; '.join(wrong)}")
    return 1 if wrong else 0


def _spread(values: "NDArray[np.float64]") -> str:
    if not values.size:
        return "unknown"
    return f"{np.median(values):.2f} ({values.min():.2f}-{values.max():.2f})"


if __name__ == "__main__":
    sys.exit(main())
