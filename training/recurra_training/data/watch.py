"""The tasks watch and watch-once: which of 7 exercises the wearer of a watch is doing, at every step or at the end.

Shoulder exercises of 10 people, 20 repetitions on each side, recorded at 50 Hz by a watch's accelerometer and
gyroscope: D. M. Burns et al., "Shoulder physiotherapy exercise recognition", Physiol. Meas. 39 (2018) 075007. The part
used here comes with the package seglearn.
"""

from dataclasses import replace
from typing import Any, Final

import numpy as np

from recurra_training.data.packages import package_file
from recurra_training.data.recording import Readings, Recording
from recurra_training.data.task import Measure, Task
from recurra_training.settings import Settings
from recurra_training.signature import TensorSpec

_RECORDED_HZ: Final = 50
_TASK_HZ: Final = 10
_SENSORS: Final = ("accelerometer", "gyroscope")
_EXERCISES: Final = {
    "PEN": "pendulum",
    "ABD": "abduction",
    "FEL": "forward elevation",
    "IR": "internal rotation",
    "ER": "external rotation",
    "TRAP": "lower trapezius row",
    "ROW": "bent-over row",
}
_SIDES: Final = {0: "left", 1: "right"}


def load() -> Task:
    """Read the recordings and bring them to 10 Hz.

    Raises:
        TaskError: seglearn is not installed.
    """
    data = _read()
    exercises = [_EXERCISES[label] for label in data["y_labels"]]
    recordings = [
        Recording(
            name=f"subject_{subject:02}_{_SIDES[int(side)]}_{exercises[exercise].replace(' ', '_').replace('-', '_')}",
            group=f"subject {subject:02}",
            x=(x := _thin(readings)),
            target=np.full(len(x), exercise, np.int64),
        )
        for readings, exercise, subject, side in zip(data["X"], data["y"], data["subject"], data["side"], strict=True)
    ]
    return Task(
        name="watch",
        description="Which of 7 exercises a watch wearer is doing, at every step.",
        input=TensorSpec(
            "x",
            "float32",
            (6,),
            labels=tuple(f"{sensor}_{axis}" for sensor in _SENSORS for axis in "xyz"),
            units=("g",) * 3 + ("rad/s",) * 3,
        ),
        output=TensorSpec("y", "float32", (len(exercises),), labels=tuple(exercises), kind="probability"),
        step_seconds=1 / _TASK_HZ,
        recordings=tuple(sorted(recordings, key=lambda recording: recording.name)),
        folds=5,
    )


def load_once() -> Task:
    """The same recordings, but one answer for each, at its last step (many-to-one).

    Raises:
        As `load`.
    """
    task = load()

    def once(recording: Recording) -> Recording:
        asked = np.zeros(len(recording.x), np.bool_)
        asked[-1] = True
        return replace(recording, asked=asked)

    return replace(
        task,
        name="watch-once",
        description="Which of 7 exercises a watch wearer has done, at the end of a recording.",
        recordings=tuple(map(once, task.recordings)),
        measure=Measure("last_step_accuracy", "max", "recordings that are right", "%"),
        settings=Settings(segment_steps=1000),  # one answer teaches the whole recording
    )


def _read() -> dict[str, Any]:
    path = package_file("seglearn", "data", "watch_dataset.npy")
    data: dict[str, Any] = np.load(path, allow_pickle=True).item()
    return data


def _thin(readings: np.ndarray[Any, np.dtype[np.float64]]) -> Readings:
    """Average each 5 readings to one step; an average uses no later reading, so a caller can do the same live."""
    every = _RECORDED_HZ // _TASK_HZ
    steps = len(readings) // every
    thinned: Readings = readings[: steps * every].reshape(steps, every, -1).mean(1).astype(np.float32)
    return thinned
