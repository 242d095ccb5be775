"""The task stocks: tomorrow's share price from those until today, as in the tutorial that everyone has seen.

GOOG from August 2004 to March 2013, from the package bokeh-sampledata. It is here because it does not work: see
docs/learning.md.
"""

import csv
import gzip
from typing import Final

import numpy as np

from recurra_training.data.forecasts import ORDER, autoregression, persistence
from recurra_training.data.packages import package_file
from recurra_training.data.recording import Recording, Split
from recurra_training.data.splits import split_in_time
from recurra_training.data.task import Measure, Task
from recurra_training.settings import Settings
from recurra_training.signature import TensorSpec

_TICKER: Final = "GOOG"
_DAYS: Final = 107
"""Trading days of a recording: 20 recordings."""


def load() -> Task:
    """Read the closing prices.

    Raises:
        TaskError: bokeh-sampledata is not installed.
    """
    path = package_file("bokeh_sampledata", "_data", "stocks.csv.gz", install="bokeh-sampledata")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["Ticker"] == _TICKER]
    prices = np.array([row["Close"] for row in rows], np.float32)[:, None]
    days = [row["Date"] for row in rows]
    recordings = []
    for start in range(0, len(prices) - 1 - _DAYS, _DAYS):
        part = slice(start, start + _DAYS)
        tomorrow = prices[start + 1 : start + 1 + _DAYS]
        recordings.append(Recording(f"from_{days[start]}", days[start], prices[part], tomorrow, _asked()))
    return Task(
        name="stocks",
        description="Tomorrow's closing price of a share, GOOG; do not buy on it.",
        input=TensorSpec("x", "float32", (1,), labels=("close",), units=("$",)),
        output=TensorSpec("y", "float32", (1,), labels=("close_tomorrow",), units=("$",), kind="value"),
        step_seconds=24 * 3600,
        recordings=tuple(recordings),
        deal=split_in_time,
        measure=Measure("rmse", "min", "RMSE of tomorrow's price", "$"),
        baselines=_baselines,
        settings=Settings(
            hidden=32,
            epochs=150,
            patience=40,
            batch_size=4,
            segment_steps=_DAYS,
            learning_rate=0.005,
            dropout=0.0,
            input_noise=0.0,
        ),
    )


def _baselines(split: Split) -> dict[str, float]:
    return {"persistence": persistence(split.test), "ar12": autoregression(split.train, split.test)}


def _asked() -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    return np.arange(_DAYS) >= ORDER - 1
