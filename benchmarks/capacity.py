"""How many live calls of the voice example one core carries: `python -m benchmarks.capacity`.

The server has a processor to itself, the load generator the others. Beside what the server takes for a step stands what
ONNX Runtime takes for it alone, on the same processor, at the same number of rows a call: the rest is gRPC and Python.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import App, Parameter, validators
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.runtimes.probe import seconds_of
from rich.console import Console
from rich.table import Table

from benchmarks import client
from benchmarks.client import ClientProcess, Values
from benchmarks.contenders import ROOT
from benchmarks.parts.paced import PACE, most, within_deadline
from benchmarks.processes import free_port, running

MODEL: Final = "silero-vad"
SESSIONS: Final = (1, 8, 32)
app = App(name="capacity", help="How many live calls one core carries.")


@app.default
def main(
    *,
    core: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
    seconds: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 4.0,
    first: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 128,
) -> None:
    """Measure on this machine, which needs two processors and should do nothing else.

    Parameters
    ----------
    core
        The processor of the server; the load generator has the others.
    seconds
        How long each load is measured.
    first
        The number of calls that is tried first.
    """
    others = os.sched_getaffinity(0) - {core}
    if not others or core not in os.sched_getaffinity(0):
        sys.exit("capacity: needs two processors, one of them --core")
    out, port = Console(highlight=False), free_port()
    with tempfile.TemporaryDirectory() as folder, ClientProcess() as load:
        subprocess.run([sys.executable, ROOT / "examples" / "silero-vad" / "install.py", folder], check=True)
        alone = load.run(on_processors, {core}, _alone, Path(folder, MODEL, "1", "model.onnx"))
        serve = Path(sys.executable).with_name("recurra")
        options = ["--models", folder, "--port", port, "--no-metrics", "--admit-below", 0]
        with running(["taskset", "--cpu-list", str(core), serve, "serve", *map(str, options)], port) as pid:

            def measure(sessions: int, **plan: Any) -> Values:
                target = f"127.0.0.1:{port}"
                arguments = (client.load, target, pid, MODEL)
                return load.run(on_processors, others, *arguments, sessions=sessions, seconds=seconds, **plan)

            _print_steps(out, alone, {sessions: measure(sessions) for sessions in SESSIONS})
            knee = most(lambda sessions: _kept(out, measure(sessions, pace=PACE), sessions), first, 1 / 16)
    out.print(
        f"One core carries {knee} calls: all steps of theirs are answered, 99% of them within {PACE * 1e3:.0f} ms."
    )


def on_processors(processors: set[int], function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function with only these processors to run on."""
    os.sched_setaffinity(0, processors)
    return function(*arguments, **named)


def _alone(model: Path) -> dict[int, float]:
    """Seconds of ONNX Runtime for a row, by rows a call."""
    runtime = OnnxRuntime(model)
    return {rows: min(seconds_of(runtime, rows) for _ in range(20)) / rows for rows in SESSIONS}


def _kept(out: Console, values: Values, sessions: int) -> bool:
    out.print(f"{sessions} calls: p99 {values['p99'] * 1e3:.1f} ms", style="dim")
    return within_deadline(values)


def _print_steps(out: Console, alone: dict[int, float], served: dict[int, Values]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in (
        "sessions in a closed loop",
        "steps/s",
        "server, µs a step",
        "ONNX Runtime alone, µs a row",
        "its share",
    ):
        table.add_column(column, justify="right")
    for sessions, values in served.items():
        whole, model = values["server_cpu_per_step"], alone[sessions]
        figures = (
            f"{values['steps_per_second']:,.0f}",
            f"{whole * 1e6:.0f}",
            f"{model * 1e6:.0f}",
            f"{model / whole:.0%}",
        )
        table.add_row(str(sessions), *figures)
    out.print(table)


if __name__ == "__main__":
    app()
