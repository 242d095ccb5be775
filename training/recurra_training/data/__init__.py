"""Tasks and their data."""

from collections.abc import Callable
from typing import Final

from recurra_training.data import watch
from recurra_training.data.task import Recording, Split, Task, split_by_group

TASKS: Final[dict[str, Callable[[], Task]]] = {"watch": watch.load}
"""Every task that `recurra train` knows, by name."""

__all__ = ["TASKS", "Recording", "Split", "Task", "split_by_group"]
