"""What `recurra train` is asked for: a task, own data, or a run to be repeated."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import TypeAdapter, ValidationError

from recurra_training.cells import Cell
from recurra_training.data import TASKS
from recurra_training.data.table import load_table
from recurra_training.data.task import Task
from recurra_training.errors import RunError, TaskError
from recurra_training.settings import Changes, Settings
from recurra_training.source import TableSource


class Request(NamedTuple):
    """What to train: on what, how, and which kinds of network."""

    task: Task
    settings: Settings
    cells: tuple[Cell, ...]


def resolve(name: str, source: TableSource, config: Path | None, changes: Changes, cells: Sequence[Cell]) -> Request:
    """Read the task and put its settings together; flags come before the configuration, that before the task's own.

    Raises:
        TaskError: Not exactly one of the three is asked for, or the data cannot be read.
        RunError: The configuration cannot be used.
    """
    if sum((bool(name), source.data is not None, config is not None)) != 1:
        raise TaskError("say what to learn: a task, or --data with own data, or --config with a run to be repeated")
    if config is not None:
        task, settings = _configured(config)
        return Request(task, changes.applied_to(settings), tuple(cells) or (settings.cell,))
    task = TASKS[name]() if name else load_table(source)
    return Request(task, changes.applied_to(task.settings), tuple(cells) or task.cells)


def _configured(path: Path) -> tuple[Task, Settings]:
    try:
        fields: dict[str, Any] = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        name, data = fields.pop("task"), fields.pop("data", None)
        settings = TypeAdapter(Settings).validate_python(fields)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise RunError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (yaml.YAMLError, TypeError, ValueError, KeyError) as error:
        raise RunError(f"{path} is not the config.yaml of a run ({type(error).__name__}: {error})") from None
    if data is not None:
        return load_table(TypeAdapter(TableSource).validate_python(data)), settings
    if name not in TASKS:
        raise RunError(f"{path}: there is no task {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name](), settings
