"""The adding problem: a sum whose two terms may lie far apart in time (Hochreiter and Schmidhuber, 1997)."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from recurra_training.data.recording import Recording
from recurra_training.data.splits import split_in_time
from recurra_training.data.task import Measure, Task
from recurra_training.settings import Settings
from recurra_training.signature import TensorSpec

CONSTANT_ERROR: Final = 1 / 6
"""Mean squared error of the best constant answer, 1: the variance of the sum of two numbers uniform in [0, 1)."""


def adding_problem(
    sequences: int, steps: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw sequences of the adding problem, in the form of Le, Jaitly and Hinton (2015), arXiv:1504.00941.

    At each step a number is read, uniform in [0, 1), and beside it a marker: 1 at two steps, one in each half of the
    sequence, and 0 at the others. At the last step, the sum of the two marked numbers is wanted. Who cannot remember
    over about half of the sequence cannot do better than `CONSTANT_ERROR`.

    Args:
        sequences: How many.
        steps: Length of each, at least 2.
        rng: Where chance comes from.

    Returns:
        x: `[sequences, steps, 2]`, numbers and markers.
        y: `[sequences]`, the sums, from 0 to 2.

    Raises:
        ValueError: `steps` is below 2.
    """
    if steps < 2:
        raise ValueError(f"the adding problem needs at least 2 steps, not {steps}")
    numbers = rng.random((sequences, steps), dtype=np.float32)
    markers = np.zeros_like(numbers)
    rows, half = np.arange(sequences), steps // 2
    first, second = rng.integers(0, half, sequences), rng.integers(half, steps, sequences)
    markers[rows, first] = markers[rows, second] = 1
    return np.stack([numbers, markers], axis=-1), numbers[rows, first] + numbers[rows, second]


def load(steps: int = 100, sequences: int = 20_000) -> Task:
    """The problem as a task, with as many sequences to learn from; 2,000 more to choose by, and 2,000 to judge by."""

    def draw(part: str, count: int, seed: int) -> list[Recording]:
        x, y = adding_problem(count, steps, np.random.default_rng([seed, steps]))
        asked = np.arange(steps) == steps - 1
        targets = np.repeat(y[:, None, None], steps, axis=1)
        pairs = zip(x, targets, strict=True)
        return [Recording(f"{part}_{index}", part, *pair, asked) for index, pair in enumerate(pairs)]

    return Task(
        name="adding" if steps == 100 else f"adding-{steps}",
        description=f"The sum of the two marked numbers of {steps}, at the last step.",
        input=TensorSpec("x", "float32", (2,), labels=("number", "marker")),
        output=TensorSpec("y", "float32", (1,), labels=("sum",), kind="value"),
        step_seconds=None,
        recordings=(*draw("train", sequences, 0), *draw("validation", 2_000, 1), *draw("test", 2_000, 2)),
        deal=split_in_time,
        measure=Measure("mse", "min", "mean squared error"),
        goal=0.002,
        settings=Settings(
            cell="lstm",
            epochs=10,
            patience=10,
            batch_size=100,
            segment_steps=steps,
            learning_rate=0.003,
            dropout=0.0,
            input_noise=0.0,
            memory_steps=steps,
        ),
    )
