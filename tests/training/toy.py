"""A small task that wants memory: the first reading of a recording says what class all of it is."""

import numpy as np
from recurra_training.data import Recording, Task
from recurra_training.settings import Settings
from recurra_training.signature import TensorSpec

SETTINGS = Settings(hidden=8, epochs=4, batch_size=8, segment_steps=5, learning_rate=0.02, dropout=0.1, patience=99)


def toy_task(groups: int = 6, recordings: int = 4, seed: int = 0) -> Task:
    """Recordings of 7 to 12 steps with 2 features, in 2 classes."""
    rng = np.random.default_rng(seed)
    made = []
    for group in range(groups):
        for index in range(recordings):
            x = rng.normal(size=(rng.integers(7, 13), 2)).astype(np.float32)
            x[0, 0] += np.sign(x[0, 0])  # not too close to call
            target = np.full(len(x), int(x[0, 0] > 0), np.int64)
            made.append(Recording(f"recording_{group}_{index}", f"group {group}", x, target))
    return Task(
        "toy",
        "Whether the first reading was above 0.",
        TensorSpec("x", "float32", (2,), labels=("a", "b")),
        TensorSpec("y", "float32", (2,), labels=("below", "above"), kind="probability"),
        0.1,
        tuple(made),
    )
