"""What a single step costs in the two APIs, part by part and without a network: `python -m benchmarks.edges`.

The gap between the APIs is in their edges; between them the way of a step is the same. Eight sequences step in turns,
as the messages of eight streams, so that batches are of eight. Of each part the least of many rounds is taken, which is
steady on a machine that does other work.
"""

import asyncio
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from recurra.openinference import open_inference_pb2
from recurra.v1 import inference_pb2
from recurra_server.driver import Driver
from recurra_server.engine.engine import Engine
from recurra_server.engine.limits import Limits
from recurra_server.engine.served_model import ServedModel
from recurra_server.rpc.openinference.infer_stream import InferStream
from recurra_server.rpc.openinference.sequences import Sequences
from recurra_server.rpc.step_stream import StepStream
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.telemetry.metrics import EdgeCounts
from rich.console import Console
from rich.table import Table

from benchmarks.dialects import Dialect, Recurra
from benchmarks.models import FEATURES, publish
from benchmarks.peers.dialects import OpenInference

SEQUENCES: Final = 8
ROUNDS: Final = 4000
PARTS: Final = ("parse", "accept", "engine and model", "answer", "serialise")


class _Outbox:
    """Stands for a stream's writer: what is to be written is kept until it is asked for."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[Any], Any], Any]] = []

    def put(self, render: Callable[[Any], Any], about: Any, _size: int) -> None:
        """Keep it."""
        self.waiting.append((render, about))

    def close(self) -> None:
        """Nothing is open."""


class _Context:
    """Stands for a call; nothing is read from it or written to it."""

    def write(self, _message: object) -> None:
        """Not called."""


async def measure(dialect: Dialect, parse: Callable[[bytes], Any], streams: list[Any], rounds: int) -> dict[str, float]:
    """Seconds that each part of a step takes."""
    outboxes = []
    for stream in streams:
        stream._writer = _Outbox()
        outboxes.append(stream._writer)
    x = np.random.default_rng(0).standard_normal((SEQUENCES, FEATURES)).astype(np.float32)
    least = dict.fromkeys(PARTS, float("inf"))
    for turn in range(rounds):
        messages = [dialect.encode(number, x[number], first=turn == 0) for number in range(SEQUENCES)]
        times = [time.perf_counter()]
        requests = [parse(message) for message in messages]
        times.append(time.perf_counter())
        for stream, request in zip(streams, requests, strict=True):
            if (rest := stream._accept(request)) is not None:
                await rest
        times.append(time.perf_counter())
        await asyncio.sleep(0)  # the turn of the loop in which the batch is run
        times.append(time.perf_counter())
        replies = [outbox.waiting.pop() for outbox in outboxes]
        answers = [render(about) for render, about in replies]
        times.append(time.perf_counter())
        for answer in answers:
            answer.SerializeToString()
        times.append(time.perf_counter())
        for part, begin, end in zip(PARTS, times, times[1:], strict=False):
            least[part] = min(least[part], (end - begin) / SEQUENCES)
    return least


async def compare(rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """The parts of a step, in seconds, by API."""
    gc.disable()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        runtime = OnnxRuntime(publish(Path(folder), "lstm-128", 128))
        for name in ("recurra.v1", "Open Inference"):
            engine = Engine(Limits())
            driver, edge = Driver(engine), EdgeCounts()
            driver.serve(ServedModel("lstm-128", "1", "", runtime.signature, runtime, engine.limits))
            context: Any = _Context()
            if name == "recurra.v1":
                templates: dict[Any, Any] = {}
                streams: list[Any] = [StepStream(driver, edge, templates, context, 256, None) for _ in range(SEQUENCES)]
                found[name] = await measure(Recurra(), inference_pb2.StreamStepsRequest.FromString, streams, rounds)
            else:
                sequences = Sequences(driver)
                streams = [InferStream(driver, sequences, edge, context, 256, None) for _ in range(SEQUENCES)]
                dialect = OpenInference("stream", wrapped=True, model="lstm-128")
                found[name] = await measure(dialect, open_inference_pb2.ModelInferRequest.FromString, streams, rounds)
    return found


def main() -> None:
    """Measure and print."""
    found = asyncio.run(compare())
    table = Table(box=None, pad_edge=False)
    table.add_column("µs a step")
    for name in found:
        table.add_column(name, justify="right")
    for part in PARTS:
        table.add_row(part, *(f"{1e6 * parts[part]:.2f}" for parts in found.values()))
    table.add_row("all", *(f"{1e6 * sum(parts.values()):.2f}" for parts in found.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
