"""Writes recordings as CSV files, for `recurra stream`."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recurra_training.data.recording import Recording
from recurra_training.data.task import Task


def write_recordings(task: Task, recordings: Sequence[Recording], folder: Path) -> None:
    """Write `<name>.csv` for each recording: `time_s` or `step`, a column for each feature, then what is true.

    That is the class's name in the column `label`, or the values in columns `true_...`; it is empty where no answer is
    asked for. Readings are written with all the digits of a float32, so that a model answers them as it answers the
    recording. CSV files already in the folder are removed: they may be of another split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.csv"):
        old.unlink()
    features = task.input.labels if task.input.dims else ("token",)
    truth = ["label"] if task.is_classes else [f"true_{label}" for label in task.output.labels]
    when = "step" if task.step_seconds is None else "time_s"
    for recording in recordings:
        with (folder / f"{recording.name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([when, *features, *truth])
            asked = np.ones(len(recording.x), np.bool_) if recording.asked is None else recording.asked
            for step, reading in enumerate(recording.x.reshape(len(recording.x), -1)):
                time = f"{step * task.step_seconds:g}" if task.step_seconds else str(step + 1)
                true = _true(task, recording.target[step]) if asked[step] else [""] * len(truth)
                writer.writerow([time, *map(_exact, np.asarray(reading)), *true])


def _true(task: Task, target: Any) -> list[str]:
    return [task.output.labels[int(target)]] if task.is_classes else [_exact(value) for value in target]


def _exact(value: np.float32 | np.int64) -> str:
    return str(value) if isinstance(value, np.integer) else np.format_float_positional(value, unique=True, trim="0")
