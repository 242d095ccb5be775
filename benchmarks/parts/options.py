"""What options change: of the server, metrics and logging, and the number of workers; of a model, optional outputs."""

from contextlib import ExitStack
from typing import Final

from benchmarks import contenders
from benchmarks.client import load
from benchmarks.models import INSIDE, publish
from benchmarks.parts.bench import Bench
from benchmarks.processes import free_port
from benchmarks.runs import compare

TELEMETRY: Final = "telemetry"
WORKERS: Final = "workers"
SINGLE: Final = "1 worker, 1 thread"
TWO: Final = "2 workers"
OUTPUTS: Final = "outputs"
UNASKED: Final = "optional output, not asked for"


def telemetry(bench: Bench) -> None:
    """Metrics and logging as shipped, and off."""
    off = contenders.ours(bench.models, "lstm-128", "--no-metrics", "--log-level", "error", name="recurra, off")
    pair = [contenders.ours(bench.models), off]
    compare(TELEMETRY, pair, (1, 64), bench.small, bench.effort, bench.client, bench.findings, together=True)


def outputs(bench: Bench) -> None:
    """A model without optional outputs; one with such, which nobody asks for; and the same, asked for."""
    publish(bench.models, "lstm-128-inside", 128, inside=True)
    some = [
        contenders.ours(bench.models),
        contenders.ours(bench.models, "lstm-128-inside", name=UNASKED),
        contenders.ours(bench.models, "lstm-128-inside", name="optional output, asked for", outputs=("y", INSIDE)),
    ]
    compare(OUTPUTS, some, (64,), bench.small, bench.effort, bench.client, bench.findings, together=True)


def workers(bench: Bench) -> None:
    """One worker and two, with a model that is mostly arithmetic: single steps, and chunks of 8.

    One worker alone has ONNX Runtime's threads on all processors; beside one with a single thread shows what the
    second worker brings.
    """
    some = [
        contenders.ours(bench.models, "lstm-512x2", *options, name=name)
        for name, options in {
            SINGLE: ("--workers", "1", "--threads", "1"),
            "1 worker": ("--workers", "1"),
            TWO: ("--workers", "2"),
        }.items()
    ]
    compare(WORKERS, some, (64,), bench.large, bench.effort, bench.client, bench.findings, together=True)
    for turn in range(bench.effort.rounds):
        with ExitStack() as stack:
            ports = [free_port() for _ in some]
            pids = [stack.enter_context(one.running(port)) for one, port in zip(some, ports, strict=True)]
            for one, port, pid in zip(some, ports, pids, strict=True):
                plan = {"api": "stream", "sessions": 64, "chunk": 8, "seconds": bench.effort.seconds, "warmup": 0.3}
                values = bench.client.run(load, f"127.0.0.1:{port}", pid, "lstm-512x2", **plan)
                bench.findings.add(WORKERS, one.name, "64 x 8", turn, values)
