"""The knee: sessions that step every 32 ms, their number raised until p99 passes that deadline."""

from typing import Final

from benchmarks import contenders
from benchmarks.client import Job, Values
from benchmarks.dialects import Recurra
from benchmarks.parts.bench import Bench
from benchmarks.processes import free_port

PART: Final = "paced"
PACE: Final = 0.032
_GROWTH: Final = 1.5
_REFINEMENTS: Final = 3


def knee(bench: Bench) -> None:
    """Find it for a small and a large model: doubling roughly, then halving the interval."""
    for model in ("lstm-128", "lstm-512x2"):
        for turn in range(1 if bench.effort.quick else 2):
            _find(bench, model, turn)


def _find(bench: Bench, model: str, turn: int) -> None:
    port = free_port()
    with contenders.ours(bench.models, model).running(port) as pid:

        def kept(sessions: int) -> bool:
            job = Job(
                f"127.0.0.1:{port}", pid, Recurra(model), sessions, max(bench.effort.seconds, 1.0), 0.5, pace=PACE
            )
            values = bench.client.measure(job)
            bench.findings.add(PART, model, sessions, turn, values)
            return within_deadline(values)

        low, high = 0, 64 if model == "lstm-128" else 16
        while kept(high) and high < 4000:
            low, high = high, int(high * _GROWTH)
        for _ in range(1 if bench.effort.quick else _REFINEMENTS):
            middle = (low + high) // 2
            if kept(middle):
                low = middle
            else:
                high = middle
        bench.findings.add(PART + " knee", model, "sessions within the deadline", turn, {"sessions": float(low)})


def within_deadline(values: Values) -> bool:
    """Whether all was answered, 99 % of it before the session's next step was due."""
    return values["errors"] == 0 and values["p99"] <= PACE
