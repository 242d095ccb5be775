"""The Open Inference Protocol: ours beside tritonserver, driven by Triton's own load generator and by our lean one."""

from typing import Final

from benchmarks import contenders
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
            port = free_port()
            target = f"127.0.0.1:{port}"
            try:
                with contender.running(port) as pid:
                    await_answers(target, contender, local)
                    for count in SESSIONS:
                        values = perf_analyzer.measure(target, pid, model, count, bench.effort.seconds)
                        bench.findings.add(PERF_ANALYZER, contender.name, count, turn, values)
            except (UnavailableError, OSError) as error:
                bench.findings.missing(PERF_ANALYZER, contender.name, str(error))
                del remaining[model]
