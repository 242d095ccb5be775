"""What a forecast must be held against before anybody is impressed by it."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recurra_training.data.recording import Recording

ORDER: Final = 12
"""Readings that the linear forecast looks back on."""

Values = NDArray[np.floating]


def rmse(errors: Values) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.mean(np.square(errors, dtype=np.float64))))


def persistence(recordings: Sequence[Recording], output: int = 0) -> float:
    """RMSE of "it stays as it is": the latest first reading for the output given, where an answer is asked for."""
    return rmse(np.concatenate([(one.target[:, output] - one.x[:, 0])[_asked(one)] for one in recordings]))


def autoregression(train: Sequence[Recording], test: Sequence[Recording], output: int = 0) -> float:
    """RMSE of AR(12) fitted for the horizon itself: linear in the latest 12 first readings, by least squares."""
    x, y = _windows(train, output)
    weights, *_ = np.linalg.lstsq(x, y, rcond=None)
    x, y = _windows(test, output)
    return rmse(x @ weights - y)


def _windows(recordings: Sequence[Recording], output: int) -> tuple[Values, Values]:
    xs, ys = [], []
    for recording in recordings:
        windows = np.lib.stride_tricks.sliding_window_view(recording.x[:, 0].astype(np.float64), ORDER)
        asked = _asked(recording)[ORDER - 1 :]
        xs.append(np.c_[windows, np.ones(len(windows))][asked])
        ys.append(recording.target[ORDER - 1 :, output][asked])
    return np.concatenate(xs), np.concatenate(ys)


def _asked(recording: Recording) -> NDArray[np.bool_]:
    return np.ones(len(recording.x), np.bool_) if recording.asked is None else recording.asked
