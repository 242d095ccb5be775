"""Single steps in a closed loop: ours beside the bare echo, the peers, and the model with nothing round it."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks import contenders
from benchmarks.client import Values
from benchmarks.models import LocalModel
from benchmarks.parts.bench import Bench
from benchmarks.peers.registry import peers
from benchmarks.runs import compare

SESSIONS: Final = (1, 8, 64)
LIMIT: Final = "steps"
PEERS: Final = "peers"
MODEL: Final = "model"


def ours_and_echo(bench: Bench) -> None:
    """Ours and the bare grpc.aio echo server, with the same messages and the same client."""
    pair = [contenders.ours(bench.models), contenders.echo()]
    compare(LIMIT, pair, SESSIONS, bench.small, bench.effort, bench.client, bench.findings, together=True)
    for turn in range(bench.effort.rounds):
        for rows in (*SESSIONS, 256):
            values = bench.client.run(run_alone, bench.small, rows, 1, bench.effort.seconds / 2)
            bench.findings.add(MODEL, "ONNX Runtime alone", rows, turn, values)


def against_peers(bench: Bench) -> None:
    """Ours, the hand-written and the peers, each with its leanest client."""
    everyone = [
        contenders.ours(bench.models),
        contenders.by_hand(bench.small, threads=False),
        contenders.by_hand(bench.small, threads=True),
        *peers(bench.small),
    ]
    effort = replace(bench.effort, seconds=bench.effort.seconds / 2)  # there are many, and some start slowly
    compare(PEERS, everyone, SESSIONS, bench.small, effort, bench.client, bench.findings, together=False)


def run_alone(path: Path, rows: int, steps: int, seconds: float) -> Values:
    """The model in ONNX Runtime, one thread, fed with its own states."""
    model = LocalModel(path)
    x = np.random.default_rng(0).standard_normal((rows, steps, 16)).astype(np.float32)
    states = model.start(rows)
    for _ in range(20):
        _, states = model.run(x, states)
    times = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        _, states = model.run(x, states)
        times.append(time.perf_counter() - began)
    p50, p99 = np.percentile(times, [50, 99])
    return {"steps_per_second": rows * steps * len(times) / sum(times), "p50": float(p50), "p99": float(p99)}
