"""Tries models in a process of its own: a hostile or broken one may crash it, take its memory, or never end."""

import asyncio
import json
import os
import re
import resource
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from pathlib import Path

from recurra_server.engine.errors import one_line
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.runtimes.probe import probe


async def rehearse(
    models: Sequence[Path], *, sessions: int, seconds: float, operators: Sequence[Path] = ()
) -> AsyncGenerator[str]:
    """Load and run models where they can harm nobody, one after another.

    One process tries them all; should one of them end it, another process goes on with the rest.

    Args:
        models: The files.
        sessions: How many share a call at most.
        seconds: What each may take; the first also waits for the process to begin.
        operators: Libraries whose operators they may use.

    Yields:
        For each in turn why it cannot be used; empty where it can.
    """
    left = deque(models)
    while left:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", __name__),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            assert process.stdin is not None  # noqa: S101 - it is a pipe
            task = [sessions, [*map(str, operators)], *map(str, left)]
            process.stdin.write(json.dumps(task).encode() + b"\n")
            while left and process.returncode is None:
                why = await _hear(process, seconds)
                left.popleft()
                yield why
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _hear(process: asyncio.subprocess.Process, seconds: float) -> str:
    """What becomes of the model that is being tried; the process has ended if it did not survive it."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    try:
        line = await asyncio.wait_for(process.stdout.readline(), seconds)
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"it took more than {seconds:g} s to be loaded and tried"
    if line:
        why: str = json.loads(line)
        return why
    status = await process.wait()
    how = f"died of signal {-status}" if status < 0 else f"ended with status {status}"
    return f"the process that tried it {how}"


def main() -> None:
    """Be that process: try what stdin names, and answer with a line of JSON for each.

    It is named in JSON, as `[sessions, [library, ...], model, ...]`.
    """
    sessions, operators, *paths = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    _confine()
    for path in paths:
        print(json.dumps(_try(Path(path), sessions, [*map(Path, operators)])), flush=True)


def _try(path: Path, sessions: int, operators: Sequence[Path]) -> str:
    try:
        probe(OnnxRuntime(path, operators=operators), sessions)
    except Exception as error:
        return one_line(error)
    return ""


def _end_with_stdin() -> None:
    """Do not outlive whoever asked, whatever a model is doing."""
    sys.stdin.read()
    os._exit(1)


def _confine() -> None:
    """Take no more memory than is free, and be the first to go where the machine runs short of it."""
    with suppress(OSError):  # no Linux
        Path("/proc/self/oom_score_adj").write_text("1000")
        free = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
        if free is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (int(free[1]) << 10,) * 2)


if __name__ == "__main__":
    main()
