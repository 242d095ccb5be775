"""Triton's own load generator, perf_analyzer: the client that the Open Inference Protocol is measured with.

It comes in the Linux wheel of tritonclient 2.51.0, and wants two libraries that tritonserver's wheel holds.
"""

import csv
import json
import math
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

import grpc
import numpy as np
from recurra.openinference import open_inference_pb2, open_inference_pb2_grpc

from benchmarks.client import Values
from benchmarks.peers.registry import triton_libraries
from benchmarks.processes import alive, cpu_seconds, family
from benchmarks.venvs import UnavailableError, environment

SEQUENCE_STEPS: Final = 100
_LIBRARIES: Final = ("libb64.so.0d", "libcudart.so.12")
_WINDOWS: Final = 3  # it reports the mean of its last three
_PATIENCE: Final = 120.0


class ServerDiedError(Exception):
    """The server ended while it was measured, for which perf_analyzer would wait for ever."""


def measure(target: str, pid: int, model: str, sequences: int, seconds: float) -> Values:
    """Step sequences in a closed loop, each over a stream of its own.

    Raises:
        UnavailableError: perf_analyzer cannot be installed or run, or reports errors.
        ServerDiedError: The server did not survive it.
    """
    programs = environment("tritonclient", ("tritonclient[grpc]==2.51.0",))
    with tempfile.TemporaryDirectory() as folder:
        report, data = Path(folder) / "report.csv", Path(folder) / "data.json"
        # Its own random data are huge numbers; this is a step as our load generator sends it.
        data.write_text(json.dumps({"data": [{name: _step(size) for name, size in _inputs(target, model).items()}]}))
        command = [
            programs / "perf_analyzer", "-m", model, "-u", target, "-i", "grpc", "--async", "--streaming",
            "--sequence-length", SEQUENCE_STEPS, "--sequence-length-variation", 0,
            "--concurrency-range", sequences, "--measurement-interval", round(seconds * 1e3 / _WINDOWS),
            "--max-trials", _WINDOWS, "--stability-percentage", 999, "--input-data", data, "-f", report,
        ]  # fmt: skip
        env = {**os.environ, "LD_LIBRARY_PATH": str(_libraries(Path(folder)))}
        before, cpu, began = _steps(target, model), cpu_seconds(family(pid)), time.perf_counter()
        client = _children_cpu()
        _run([str(part) for part in command], env, pid, _PATIENCE + 3 * seconds)
        if not report.exists():
            raise UnavailableError("perf_analyzer wrote no report")
        with report.open() as file:
            row = next(csv.DictReader(file))
        took, client = time.perf_counter() - began, _children_cpu() - client
        steps = _steps(target, model) - before
        return {
            "steps_per_second": float(row["Inferences/Second"]),
            "p50": float(row["p50 latency"]) / 1e6,
            "p99": float(row["p99 latency"]) / 1e6,
            "server_cpu_per_step": (cpu_seconds(family(pid)) - cpu) / max(1, steps),
            "client_cpu": client / took,
        }


def _run(command: list[str], env: dict[str, str], server: int, patience: float) -> None:
    """Run perf_analyzer to its end, for as long as the server lives."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + patience
        while True:
            try:
                code = process.wait(0.1)
                break
            except subprocess.TimeoutExpired:
                died, late = not alive(server), time.monotonic() > deadline
            if died or late:
                process.kill()
                process.wait()
                raise ServerDiedError if died else UnavailableError("perf_analyzer did not end in time")
        if not alive(server):
            raise ServerDiedError
        if code:
            output.seek(0)
            raise UnavailableError(f"perf_analyzer: {_why(output.read())}")


def _why(output: str) -> str:
    """The line that tells most of what it printed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it printed nothing"]
    return next((line for line in lines if "rror" in line or "ailed" in line or "larger" in line), lines[-1])


def _libraries(folder: Path) -> Path:
    """A folder with the libraries, under the names that perf_analyzer looks for."""
    for library in _LIBRARIES:
        stem, _, version = library.partition(".so.")
        found = next(triton_libraries().glob(f"{stem}-*.so.{version}*"), None)
        if found is None:
            raise UnavailableError(f"perf_analyzer needs {library}, and tritonserver's wheel has none")
        (folder / library).symlink_to(found)
    return folder


def _inputs(target: str, model: str) -> dict[str, int]:
    """The elements of a step of each input."""
    with grpc.insecure_channel(target) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        config = stub.ModelConfig(open_inference_pb2.ModelConfigRequest(name=model)).config
        return {tensor.name: math.prod(tensor.dims) for tensor in config.input}


def _step(size: int) -> list[float]:
    step: list[float] = np.random.default_rng(0).standard_normal(size).tolist()
    return step


def _steps(target: str, model: str) -> int:
    """Steps that the server has applied so far, by its own account."""
    with grpc.insecure_channel(target) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = open_inference_pb2.ModelStatisticsRequest(name=model)
        return sum(stats.inference_count for stats in stub.ModelStatistics(request).model_stats)


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system
