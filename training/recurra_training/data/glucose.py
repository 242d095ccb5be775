"""The task glucose: one person's blood sugar 30 and 60 minutes ahead, at every reading.

A continuous monitor's readings, one each 5 minutes from March to October 2010, from the package bokeh-sampledata
(public domain).
"""

import csv
import gzip
from datetime import datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recurra_training.data.forecasts import ORDER, autoregression, persistence
from recurra_training.data.packages import package_file
from recurra_training.data.recording import Recording, Split
from recurra_training.data.splits import split_in_time
from recurra_training.data.task import Measure, Task
from recurra_training.settings import Settings
from recurra_training.signature import TensorSpec

AHEAD: Final = (6, 12)
"""Readings that the outputs look ahead."""
_MINUTES: Final = 5
_GAP_MINUTES: Final = 7.5
_LONGEST: Final = 576
"""Readings of a recording: two days."""


def load() -> Task:
    """Read the readings, and cut them where one is missing.

    Raises:
        TaskError: bokeh-sampledata is not installed.
    """
    recordings = [
        recording
        for stretch in _stretches()
        for start in range(0, len(stretch), _LONGEST)
        if (recording := _recording(stretch[start : start + _LONGEST + AHEAD[-1]])) is not None
    ]
    return Task(
        name="glucose",
        description="A person's blood sugar 30 and 60 minutes ahead, from readings each 5 minutes.",
        input=TensorSpec("x", "float32", (1,), labels=("glucose",), units=("mg/dL",)),
        output=TensorSpec("y", "float32", (2,), labels=("in_30_min", "in_60_min"), units=("mg/dL",), kind="value"),
        step_seconds=60 * _MINUTES,
        recordings=tuple(
            Recording(f"part_{index:03}", f"part {index:03}", *one) for index, one in enumerate(recordings)
        ),
        deal=split_in_time,
        measure=Measure("rmse_in_30_min", "min", "RMSE 30 minutes ahead", "mg/dL"),
        baselines=_baselines,
        settings=Settings(
            cell="gru",
            hidden=32,
            epochs=25,
            patience=25,
            batch_size=8,
            segment_steps=72,
            learning_rate=0.003,
            schedule="cosine",
            dropout=0.0,
            input_noise=0.02,
        ),
        cells=("ffnn", "gru"),
    )


def _baselines(split: Split) -> dict[str, float]:
    return {"persistence": persistence(split.test), "ar12": autoregression(split.train, split.test)}


def _stretches() -> list[NDArray[np.float32]]:
    """Runs of readings without a gap."""
    path = package_file("bokeh_sampledata", "_data", "CGM.csv.gz", install="bokeh-sampledata")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    values = np.array([row["glucose"] for row in rows], np.float32)
    times = np.array([datetime.fromisoformat(row["datetime"]).timestamp() for row in rows])
    return np.split(values, np.flatnonzero(np.diff(times) > 60 * _GAP_MINUTES) + 1)


def _recording(
    values: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]] | None:
    """Readings with what comes after each, asked for from the 12th on; None if they are too few."""
    steps = len(values) - AHEAD[-1]
    if steps < 2 * ORDER:
        return None
    target = np.stack([values[ahead : ahead + steps] for ahead in AHEAD], axis=1)
    return values[:steps, None], target, np.arange(steps) >= ORDER - 1
