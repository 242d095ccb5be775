"""Sessions that step every 32 ms: how many meet that deadline, how they fare below and what becomes of more."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final

from benchmarks import contenders
from benchmarks.client import Values, load
from benchmarks.contenders import ROOT
from benchmarks.parts.bench import Bench
from benchmarks.processes import free_port
from benchmarks.runs import Spread

PART: Final = "paced"
KNEE: Final = "paced knee"
MISHAPS: Final = "paced mishaps"
AROUND: Final = "paced around the knee"
PACE: Final = 0.032
MODELS: Final = {"lstm-128": 256, "lstm-512x2": 32, "silero-vad": 128}
"""By name in the model repository: the number of sessions that is tried first."""
_BELOW: Final = 0.8
_BEYOND: Final = 1.3
CASES: Final = (f"{_BELOW:.0%}", f"{_BEYOND:.0%}, all taken", f"{_BEYOND:.0%}, refusing")
"""Below the knee, and beyond it: a server that takes whoever comes, and one that refuses while steps are late."""
_MOST: Final = 8192  # of those that are tried while doubling
_FINENESS: Final = 1 / 16  # of the knee
_SEARCHES: Final = 2
# Late is what takes longer than a quarter of the pace: what the server takes by itself where a model declares its pace.
_NEVER_REFUSE: Final = ("--admit-below", "0")
_REFUSE: Final = ("--admit-below", str(PACE / 4))


def paced(bench: Bench) -> None:
    """Find the knee of each model, then measure below and beyond it."""
    subprocess.run([sys.executable, ROOT / "examples" / "silero-vad" / "install.py", bench.models], check=True)
    for model, first in MODELS.items():
        knees = [_find(bench, model, first, turn) for turn in range(1 if bench.effort.quick else _SEARCHES)]
        knee = round(Spread.of([float(knee) for knee in knees]).median)
        if not knee:
            bench.findings.missing(PART, model, "not even one session is served in time")
            continue
        loads = zip(CASES, (_BELOW, _BEYOND, _BEYOND), (_NEVER_REFUSE, _NEVER_REFUSE, _REFUSE), strict=True)
        for case, share, options in list(loads):
            for turn in range(bench.effort.rounds):
                values = _measure(bench, model, round(share * knee), options)
                bench.findings.add(AROUND, model, case, turn, values)


def _find(bench: Bench, model: str, first: int, turn: int) -> int:
    """The most sessions that are served within the deadline."""
    port = free_port()
    with contenders.ours(bench.models, model, *_NEVER_REFUSE).running(port) as pid:

        def kept(sessions: int) -> bool:
            values = _load(bench, f"127.0.0.1:{port}", pid, model, sessions)
            if not within_deadline(values):
                again = _load(bench, f"127.0.0.1:{port}", pid, model, sessions)
                bench.findings.add(MISHAPS if within_deadline(again) else PART, model, sessions, turn, values)
                values = again
            bench.findings.add(PART, model, sessions, turn, values)
            return within_deadline(values)

        knee = most(kept, first, 0.5 if bench.effort.quick else _FINENESS)
    bench.findings.add(KNEE, model, "the knee", turn, {"sessions": float(knee)})
    return knee


def most(kept: Callable[[int], bool], first: int, fineness: float) -> int:
    """The largest number that is still kept, to a fineness: by doubling, then by halving the interval.

    Args:
        kept: Whether a number is; of two, the smaller is if the larger is.
        first: The number that is tried first, at least 1.
        fineness: How far the answer may be too low, as a share of it.
    """
    low, high = 0, first
    while high <= _MOST and kept(high):
        low, high = high, 2 * high
    while high - low > max(1.0, low * fineness):
        middle = (low + high) // 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low


def _measure(bench: Bench, model: str, sessions: int, options: Sequence[str]) -> Values:
    port = free_port()
    with contenders.ours(bench.models, model, *options).running(port) as pid:
        return {"sessions": float(sessions), **_load(bench, f"127.0.0.1:{port}", pid, model, sessions)}


def _load(bench: Bench, target: str, pid: int, model: str, sessions: int) -> Values:
    seconds = max(bench.effort.seconds, 1.0)
    return bench.client.run(load, target, pid, model, sessions=sessions, pace=PACE, seconds=seconds)


def within_deadline(values: Values) -> bool:
    """Whether all sessions were taken and all steps answered, 99 % of them before the session's next step was due."""
    return not (values["refused"] or values["unanswered"] or values["errors"]) and values["p99"] <= PACE
