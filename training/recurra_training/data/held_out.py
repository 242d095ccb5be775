"""Writes recordings as CSV files, for `recurra stream`."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recurra_training.data.task import Recording, Task


def write_recordings(task: Task, recordings: Sequence[Recording], folder: Path) -> None:
    """Write `<name>.csv` for each recording: `time_s`, a column for each feature, then what is true.

    That is the class's name in the column `label`, or the values in columns `true_...`.
    Readings are written with all the digits of a float32, so that a model answers them as it answers the recording.
    CSV files already in the folder are removed: they may be of another split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.csv"):
        old.unlink()
    classes = task.output.kind == "probability"
    truth = ["label"] if classes else [f"true_{label}" for label in task.output.labels]
    for recording in recordings:
        with (folder / f"{recording.name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["time_s", *task.input.labels, *truth])
            for step, (reading, target) in enumerate(zip(recording.x, recording.target, strict=True)):
                true = [task.output.labels[int(target)]] if classes else [_exact(value) for value in target]
                writer.writerow([f"{step * task.step_seconds:g}", *(_exact(value) for value in reading), *true])


def _exact(value: np.float32) -> str:
    return np.format_float_positional(value, unique=True, trim="0")
