"""Slow steps: which of them are logged, with which reason, and how often."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recurra_server.telemetry.slow import SlowSteps
from structlog.testing import capture_logs

from tests.support import models
from tests.support.harness import Harness, load


class Watched:
    """A model of which each step takes as long as the test says; what takes a quarter of a second is slow."""

    def __init__(self, folder: Path) -> None:
        self._harness = Harness({"counter": load(folder, models.counter())})
        self._slow = SlowSteps(0.25)

    def step(self, queue: float = 0.0, compute: float = 0.0, rest: float = 0.0, *, block: bool = False) -> Any:
        """Run a step that takes so many seconds in line, in the model and elsewhere; what was logged, if anything."""
        harness = self._harness
        if block:
            harness.submit_block([harness.open("counter"), harness.open("counter")], np.ones((2, 1, 1)))
        else:
            harness.submit(harness.open("counter"), np.ones((1, 1)))
        harness.now += queue
        (model,) = harness.models
        batch = model.next_batch(harness.now)
        assert batch is not None
        batch.run()
        harness.now += compute + rest
        model.commit(batch, harness.now, compute)
        with capture_logs() as logged:
            self._slow.observe_batch(model, batch, harness.now, compute)
        return logged[0] if logged else None


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize(
    ("queue", "compute", "rest", "reason"),
    [(3.0, 2.0, 1.0, "queue"), (1.0, 3.0, 2.0, "compute"), (2.0, 1.0, 3.0, "server")],
)
def test_the_reason_is_what_took_most_of_the_time(
    watched: Watched, block: bool, queue: float, compute: float, rest: float, reason: str
) -> None:
    line = watched.step(queue, compute, rest, block=block)
    assert line["reason"] == reason
    assert [line[key] for key in ("seconds", "queue_seconds", "compute_seconds")] == [6.0, queue, compute]
    assert line["batch_size"] == 1 + block


def test_only_what_takes_as_long_as_was_said_is_slow(watched: Watched) -> None:
    assert watched.step(queue=0.125, rest=0.0625) is None
    assert watched.step(queue=0.25) is not None


def test_there_is_a_line_a_second_at_most_and_it_says_how_many_there_would_have_been(watched: Watched) -> None:
    lines = [watched.step(compute=0.25) for _ in range(9)]
    assert [line and line["slow_batches_not_logged"] for line in lines] == [0, None, None, None, 3, None, None, None, 3]
