"""How many threads a model gets."""

from pathlib import Path

import pytest
from recurra_server.runtimes import quickest
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.runtimes.probe import Pace
from recurra_server.runtimes.quickest import count_processors, load_quickest

from tests.support.models import counter, publish

ONE_THREAD = Pace(alone=2e-4, full=16e-3)
THREADS = 4


@pytest.mark.parametrize(
    ("with_threads", "chosen"),
    [
        pytest.param(Pace(alone=1.5e-4, full=8e-3), THREADS, id="faster"),
        pytest.param(Pace(alone=2.5e-4, full=8e-3), 1, id="slower for a session alone"),
        pytest.param(Pace(alone=1.5e-4, full=15e-3), 1, id="hardly faster"),
    ],
)
def test_a_slow_model_gets_the_threads_that_make_it_faster(
    with_threads: Pace, chosen: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = publish(tmp_path, "counter", counter())

    def timed(runtime: OnnxRuntime, max_batch_size: int) -> Pace:
        assert max_batch_size == 64
        return ONE_THREAD if runtime.threads == 1 else with_threads

    monkeypatch.setattr(quickest, "probe", timed)

    def threads(*, asked: int = 0, processors: int = THREADS, quick: float = 1e-3) -> int:
        runtime, pace = load_quickest(path, threads=asked, processors=processors, max_batch_size=64, quick=quick)
        assert pace == (ONE_THREAD if runtime.threads == 1 else with_threads)
        return runtime.threads

    assert threads() == chosen
    assert [threads(asked=count) for count in (1, 3)] == [1, 3]
    assert threads(processors=1) == 1
    assert threads(quick=20e-3) == 1, "it is fast enough with one"


@pytest.mark.parametrize(
    ("quota", "most"), [("20000000 100000", 200), ("200000 100000", 2), ("50000 100000", 1), ("max 100000", 10**6)]
)
def test_processors_are_counted_within_a_containers_quota(quota: str, most: int, tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    everywhere = count_processors(file)
    assert everywhere >= 1, "there is no such file outside a container"
    file.write_text(quota)
    assert count_processors(file) == min(most, everywhere)
