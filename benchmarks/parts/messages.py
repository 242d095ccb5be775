"""Many steps in a message: bulk (one step of each of many sessions) and chunks (many steps of one)."""

from typing import Final

import numpy as np
from recurra.v1 import models_pb2
from recurra_client.client import Client
from recurra_client.load.generator import run_load
from recurra_client.load.outcome import Api, Plan

from benchmarks import contenders
from benchmarks.client import Values, in_loop
from benchmarks.parts.bench import Bench
from benchmarks.parts.steps import run_alone
from benchmarks.processes import cpu_seconds, family, free_port

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
    case = f"{sessions} x {steps}"
    for turn in range(bench.effort.rounds):
        port = free_port()
        with contenders.ours(bench.models).running(port) as pid:
            values = bench.client.run(_load, f"127.0.0.1:{port}", pid, api, sessions, steps, bench.effort.seconds)
        bench.findings.add(part, "recurra", case, turn, values)
        values = bench.client.run(run_alone, bench.small, sessions, steps, bench.effort.seconds / 2)
        bench.findings.add(part, "ONNX Runtime alone", case, turn, values)


def _load(target: str, pid: int, api: Api, sessions: int, steps: int, seconds: float) -> Values:
    """As `recurra bench` does it."""
    plan = Plan(target, in_loop(_describe(target)), api, sessions, seconds, warmup=0.3, chunk=steps)
    cpu = 0.0

    def ready() -> None:
        nonlocal cpu
        cpu = cpu_seconds(family(pid))

    outcome = in_loop(run_load(plan, ready, [0], 0))
    used = cpu_seconds(family(pid)) - cpu
    p50, p99 = np.percentile(np.frombuffer(outcome.latencies), [50, 99])
    per_second = outcome.steps / outcome.seconds
    return {
        "steps_per_second": per_second,
        "p50": float(p50),
        "p99": float(p99),
        "server_cpu_per_step": used / (per_second * (outcome.seconds + plan.warmup)),
        "errors": float(sum(outcome.errors.values())),
    }


async def _describe(target: str) -> models_pb2.Model:
    async with Client(target) as client:
        return await client.model("lstm-128")
