"""The Open Inference Protocol: ours beside tritonserver, driven by Triton's own load generator and by our lean one."""

from contextlib import suppress
from typing import Final

from benchmarks import contenders
from benchmarks.client import Values
from benchmarks.models import LocalModel
from benchmarks.parts.bench import Bench
from benchmarks.parts.steps import SESSIONS
from benchmarks.peers import perf_analyzer
from benchmarks.peers.registry import triton
from benchmarks.processes import free_port
from benchmarks.runs import await_answers, compare
from benchmarks.venvs import UnavailableError

PERF_ANALYZER: Final = "perf_analyzer"
LEAN: Final = "openinference"
_ATTEMPTS: Final = 8


def against_triton(bench: Bench) -> None:
    """perf_analyzer first; then our own load generator, which also speaks our own API: what the protocol costs."""
    ours = contenders.ours_openinference(bench.models)
    _driven(bench, {"lstm-128": ours, "lstm": triton(bench.small)})
    everyone = [contenders.ours(bench.models), ours, triton(bench.small)]
    compare(LEAN, everyone, SESSIONS, bench.small, bench.effort, bench.client, bench.findings, together=True)


def _driven(bench: Bench, remaining: dict[str, contenders.Contender]) -> None:
    """Measure contenders, by the name that the model has there, with perf_analyzer."""
    local = LocalModel(bench.small)
    for turn in range(bench.effort.rounds):
        for model, contender in list(remaining.items()):
            try:
                for count in SESSIONS:
                    values = _survived(contender, local, model, count, bench.effort.seconds)
                    bench.findings.add(PERF_ANALYZER, contender.name, count, turn, values)
            except (UnavailableError, OSError) as error:
                bench.findings.missing(PERF_ANALYZER, contender.name, str(error))
                del remaining[model]


def _survived(contender: contenders.Contender, local: LocalModel, model: str, count: int, seconds: float) -> Values:
    """Measure a server begun afresh: the first of them that does not die of it, and how many did.

    Triton 2.51 crashes now and then as it lets go of a request (SIGSEGV in TRITONSERVER_InferenceRequestDelete): at 64
    sequences, in about every other measurement.
    """
    for crashes in range(_ATTEMPTS):
        port = free_port()
        target = f"127.0.0.1:{port}"
        with contender.running(port) as pid, suppress(perf_analyzer.ServerDiedError):
            await_answers(target, contender, local)
            return perf_analyzer.measure(target, pid, model, count, seconds) | {"crashes": crashes}
    raise UnavailableError(f"crashed in {_ATTEMPTS} measurements of {count} sequences one after another")
