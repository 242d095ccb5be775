"""What the server's own options change: metrics and logging, and the number of workers."""

from typing import Final

from benchmarks import contenders
from benchmarks.parts.bench import Bench
from benchmarks.runs import compare

TELEMETRY: Final = "telemetry"
WORKERS: Final = "workers"


def telemetry(bench: Bench) -> None:
    """Metrics and logging as shipped, and off."""
    off = contenders.ours(bench.models, "lstm-128", "--no-metrics", "--log-level", "error", name="recurra, off")
    pair = [contenders.ours(bench.models), off]
    compare(TELEMETRY, pair, (1, 64), bench.small, bench.effort, bench.client, bench.findings, together=True)


def workers(bench: Bench) -> None:
    """One worker and two, with a model that is mostly arithmetic."""
    some = [
        contenders.ours(bench.models, "lstm-512x2", "--workers", str(count), name=f"{count} workers")
        for count in (1, 2)
    ]
    compare(WORKERS, some, (64,), bench.large, bench.effort, bench.client, bench.findings, together=True)
