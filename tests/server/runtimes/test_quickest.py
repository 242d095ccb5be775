"""How many threads a model's calls get."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
import pytest
from recurra_server.runtimes import quickest
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.runtimes.quickest import count_processors, load_quickest

from tests.support.models import counter, publish

THREADS: Final = 4
MOST: Final = 64
Load = Callable[..., tuple[OnnxRuntime, float]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a model that takes so many seconds for a full batch, with one thread and with several."""
    path = publish(tmp_path, "counter", counter())

    def load(
        alone: float, together: float, *, threads: int = 0, processors: int = THREADS
    ) -> tuple[OnnxRuntime, float]:
        def timed(runtime: OnnxRuntime, sessions: int) -> float:
            assert sessions == MOST
            return alone if runtime.threads == 1 else together

        monkeypatch.setattr(quickest, "seconds_of", timed)
        return load_quickest(path, threads=threads, processors=processors, max_batch_size=MOST)

    return load


def chosen(loaded: tuple[OnnxRuntime, float]) -> tuple[int, int, float]:
    runtime, seconds = loaded
    return runtime.threads, runtime.threads_from, seconds


def test_long_calls_get_threads_where_that_makes_them_faster(load: Load) -> None:
    assert chosen(load(16e-3, 8e-3)) == (THREADS, 1, 8e-3)
    assert chosen(load(1e-3, 0.5e-3)) == (THREADS, 16, 0.5e-3), "from 0.25 ms on"
    assert chosen(load(16e-3, 15e-3)) == (1, 1, 16e-3), "hardly faster"
    assert chosen(load(0.2e-3, 0.1e-3)) == (1, 1, 0.2e-3), "all its calls are short"
    assert chosen(load(16e-3, 8e-3, processors=1)) == (1, 1, 16e-3)


def test_threads_that_are_asked_for_are_what_a_model_gets(load: Load) -> None:
    assert chosen(load(16e-3, 8e-3, threads=3)) == (3, 1, 8e-3)
    assert chosen(load(16e-3, 8e-3, threads=1)) == (1, 1, 16e-3)


def test_calls_are_made_with_the_threads_of_their_size(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, _ = load(1e-3, 0.5e-3)
    made: list[int] = []
    run = onnxruntime.InferenceSession.run_with_iobinding

    def watched(session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding) -> None:
        made.append(session.get_session_options().intra_op_num_threads)
        run(session, binding)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", watched)
    signature = runtime.signature
    for sessions in (1, 15, 16, MOST):
        inputs = [np.ones(spec.graph_shape(sessions, 1), spec.np_dtype) for spec in signature.inputs]
        states = [np.ones(spec.graph_shape(sessions), spec.np_dtype) for spec in signature.states]
        outputs = [np.zeros(spec.graph_shape(sessions, 1), spec.np_dtype) for spec in signature.outputs]
        runtime.bind([*inputs, *states], [*outputs, *(np.zeros_like(state) for state in states)])()
        assert (outputs[0] == 2).all()
    assert made == [1, 1, THREADS, THREADS]


@pytest.mark.parametrize(
    ("quota", "most"),
    [("20000000 100000", 200), ("200000 100000", 2), ("50000 100000", 1), ("max 100000", 10**6)],
)
def test_processors_are_counted_within_a_containers_quota(quota: str, most: int, tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    everywhere = count_processors(file)
    assert everywhere >= 1, "there is no such file outside a container"
    file.write_text(quota)
    assert count_processors(file) == min(most, everywhere)
