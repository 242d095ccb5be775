"""Loads a model with ONNX Runtime's threads for the calls that they make faster."""

import os
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Final

from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.runtimes.probe import probe, seconds_of

_LONG: Final = 250e-6  # seconds of a call: in a shorter one, waking threads costs about what they bring
_WORTH: Final = 0.8  # of the time: less is not worth the processors
_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


def load_quickest(
    path: Path, *, threads: int, processors: int, max_batch_size: int, operators: Sequence[Path] = ()
) -> tuple[OnnxRuntime, float]:
    """Load a model and try it.

    Args:
        path: The file.
        threads: Threads of each call; 0 to give one for each processor to calls that get much faster by it.
        processors: How many there are for it.
        max_batch_size: Most sessions in a call.
        operators: Libraries whose operators it may use.

    Returns:
        The model, and the seconds that a full batch takes.

    Raises:
        Exception: It cannot be loaded, or does not run as its signature says.
    """
    single = OnnxRuntime(path, threads=threads or 1, operators=operators)
    probe(single, max_batch_size)
    full = 1 if single.one_by_one else max_batch_size
    alone = seconds_of(single, full)
    threads_from = ceil(full * _LONG / alone)
    if threads or processors == 1 or threads_from > full:
        return single, alone
    threaded = OnnxRuntime(path, threads=processors, operators=operators)
    together = seconds_of(threaded, full)
    if together > _WORTH * alone:
        return single, alone
    return single.with_threads(threaded, threads_from), together


def count_processors(quota: Path = _QUOTA) -> int:
    """How many processors this process may use at a time: by its affinity, and by its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = quota.read_text().split()
        return max(1, min(allowed, int(limit) // int(period)))
    except (OSError, ValueError):  # no such file, or no limit
        return allowed
