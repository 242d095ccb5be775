"""Many steps in a message: bulk (one step of each of many sessions) and chunks (many steps of one)."""

from typing import Final

from recurra_client.load.outcome import Api

from benchmarks import contenders
from benchmarks.client import load
from benchmarks.parts.bench import Bench
from benchmarks.parts.steps import run_alone
from benchmarks.processes import free_port

BULK: Final = "bulk"
CHUNKS: Final = "chunks"
_ROWS: Final = 256
_STEPS: Final = 64


def bulk(bench: Bench) -> None:
    """StepBatch with 256 sessions a message, and ONNX Runtime alone at that batch."""
    _beside_the_model(bench, BULK, "batch", _ROWS, 1)


def chunks(bench: Bench) -> None:
    """Chunks of 64 steps of one session, and ONNX Runtime's own run of 64 steps."""
    _beside_the_model(bench, CHUNKS, "stream", 1, _STEPS)


def _beside_the_model(bench: Bench, part: str, api: Api, sessions: int, steps: int) -> None:
    """With one message on its way, and with two: then the server does not wait for the caller."""
    case, seconds = f"{sessions} x {steps}", bench.effort.seconds / 2
    for turn in range(bench.effort.rounds):
        port = free_port()
        target = f"127.0.0.1:{port}"
        with contenders.ours(bench.models).running(port) as pid:
            for in_flight in (1, 2):
                plan = {
                    "api": api,
                    "sessions": sessions * (in_flight if api == "batch" else 1),
                    "chunk": steps,
                    "in_flight": in_flight,
                }
                values = bench.client.run(load, target, pid, "lstm-128", **plan, seconds=seconds, warmup=0.3)
                bench.findings.add(
                    part, "recurra" if in_flight == 1 else f"recurra, {in_flight} in flight", case, turn, values
                )
            values = bench.client.run(run_alone, bench.small, sessions, steps, seconds)
            bench.findings.add(part, "ONNX Runtime alone", case, turn, values)
