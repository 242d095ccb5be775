"""Loads a model with as many of ONNX Runtime's threads as make it faster."""

import os
from pathlib import Path
from typing import Final

from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.runtimes.probe import Pace, probe

_WORTH: Final = 0.8  # of the time: less is not worth the processors
_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def load_quickest(
    path: Path, *, threads: int, processors: int, max_batch_size: int, quick: float
) -> tuple[OnnxRuntime, Pace]:
    """Load a model and try it.

    Args:
        path: The file.
        threads: Threads inside a call; 0 to choose between one and one for each processor.
        processors: How many there are for it.
        max_batch_size: Most sessions in a call.
        quick: Seconds in which a full batch is to be done; a model that does it with one thread gets no more.

    Returns:
        The model, and how long its calls take.

    Raises:
        Exception: It cannot be loaded, or does not run as its signature says.
    """
    single = OnnxRuntime(path, threads=threads or 1)
    pace = probe(single, max_batch_size)
    if threads or processors == 1 or pace.full <= quick:
        return single, pace
    threaded = OnnxRuntime(path, threads=processors)
    faster = probe(threaded, max_batch_size)
    # Waking threads costs more than it brings where a call of one session gets slower by it.
    worth_it = faster.alone < pace.alone and faster.full < _WORTH * pace.full
    return (threaded, faster) if worth_it else (single, pace)


def count_processors(quota: Path = _QUOTA) -> int:
    """How many processors this process may use at a time: by its affinity, and by its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = quota.read_text().split()
        return max(1, min(allowed, int(limit) // int(period)))
    except (OSError, ValueError):  # no such file, or no limit
        return allowed
