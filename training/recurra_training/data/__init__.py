"""Tasks and their data."""

from collections.abc import Callable
from typing import Final

from recurra_training.data import adding, dates, glucose, stocks, surnames, watch
from recurra_training.data.recording import Recording, Split
from recurra_training.data.segments import DataModule
from recurra_training.data.splits import split_by_group, split_in_time
from recurra_training.data.task import Measure, Task

TASKS: Final[dict[str, Callable[[], Task]]] = {
    "watch": watch.load,
    "watch-once": watch.load_once,
    "adding": adding.load,
    "glucose": glucose.load,
    "surnames": surnames.load,
    "dates": dates.load,
    "stocks": stocks.load,
}
"""Every task that `recurra train` knows, by name."""

__all__ = ["TASKS", "DataModule", "Measure", "Recording", "Split", "Task", "split_by_group", "split_in_time"]
