"""A task from one's own data: a CSV, Parquet or NPY file with a row for each step."""

from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from recurra_training.data.recording import Recording
from recurra_training.data.task import ACCURACY, Measure, Task
from recurra_training.errors import TaskError
from recurra_training.settings import Settings
from recurra_training.signature import TensorSpec
from recurra_training.source import TableSource

_MOST_CLASSES: Final = 20
"""Different whole numbers that are still taken for classes."""


def load_table(source: TableSource) -> Task:
    """Read a table and make a task of it, named after the file.

    Raises:
        TaskError: It cannot be read, or does not hold what is asked of it; the message names row and column.
    """
    path = source.data
    if path is None or not (source.sequence and source.inputs and source.target):
        raise TaskError("own data need --data, --sequence, --inputs and --target: the file, and what its columns are")
    columns = _Columns(path)
    x = np.stack([columns.numbers(name) for name in source.inputs], axis=1).astype(np.float32)
    labels, target = _target(columns, source)
    recordings = _cut(x, target, columns.words(source.sequence), columns.words(source.group or source.sequence))
    classes = bool(labels)
    return Task(
        name=path.stem,
        description=f"{source.target} from {', '.join(source.inputs)}, learnt from {path.name}.",
        input=TensorSpec("x", "float32", (len(source.inputs),), labels=source.inputs),
        output=TensorSpec("y", "float32", (len(labels),), labels=labels, kind="probability")
        if classes
        else TensorSpec("y", "float32", (1,), labels=(source.target,), kind="value"),
        step_seconds=None,
        recordings=tuple(recordings),
        measure=ACCURACY if classes else Measure("rmse", "min", f"RMSE of {source.target}"),
        settings=Settings(batch_size=16, input_noise=0.1, dropout=0.1),
        source=source.as_dict(),
    )


def summary(task: Task) -> list[tuple[str, str]]:
    """What was found in a table, for people to see whether it was understood: names and facts."""
    x = np.concatenate([recording.x for recording in task.recordings])
    ranges = zip(task.input.labels, x.min(0), x.max(0), strict=True)
    found = [(f"input {name}", f"float32, from {low:.4g} to {high:.4g}") for name, low, high in ranges]
    if task.is_classes:
        names = task.output.labels
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        found.append(("target", f"{len(names)} classes: {shown}"))
    else:
        target = np.concatenate([recording.target for recording in task.recordings])
        found.append(("target", f"values, from {target.min():.4g} to {target.max():.4g}"))
    lengths = [len(recording.x) for recording in task.recordings]
    groups = {recording.group for recording in task.recordings}
    found.append(("sequences", f"{len(lengths)} in {len(groups)} groups, {min(lengths)} to {max(lengths)} steps long"))
    split = task.split()
    parts = (
        (len(split.train), "to learn from"),
        (len(split.validation), "to choose by"),
        (len(split.test), "to judge by"),
    )
    return [*found, ("split", ", ".join(f"{count} {what}" for count, what in parts))]


def _target(
    columns: "_Columns", source: TableSource
) -> tuple[tuple[str, ...], NDArray[np.int64] | NDArray[np.float32]]:
    """The names of the classes, none for values; and what should be answered, `[rows]` or `[rows, 1]`."""
    kind = source.target_kind or columns.guess(source.target)
    if kind == "value":
        return (), columns.numbers(source.target).astype(np.float32)[:, None]
    words = columns.words(source.target)
    numeric = all(word.lstrip("-").isdecimal() for word in set(words))
    labels = sorted(set(words), key=int if numeric else None)
    if len(labels) < 2:
        raise TaskError(f"column {source.target} holds only {labels[0]!r}; there must be something to tell apart")
    index = {label: place for place, label in enumerate(labels)}
    return tuple(labels), np.array([index[word] for word in words])


def _cut(x: NDArray[np.float32], target: NDArray[Any], sequences: list[str], groups: list[str]) -> list[Recording]:
    rows: dict[str, list[int]] = {}
    for row, sequence in enumerate(sequences):
        rows.setdefault(sequence, []).append(row)
    for sequence, each in rows.items():
        if len({groups[row] for row in each}) > 1:
            raise TaskError(f"sequence {sequence!r} belongs to several groups; a sequence must lie in one")
    return [Recording(_file_name(sequence), groups[each[0]], x[each], target[each]) for sequence, each in rows.items()]


def _file_name(sequence: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in sequence)


class _Columns:
    """The columns of a file; a row is counted as the file counts it, so that a mistake can be found."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._first = 2 if path.suffix == ".csv" else 1  # the header is line 1
        if not path.is_file():
            raise TaskError(f"{path} is not a file")
        try:
            self._columns = _READERS[path.suffix](path)
        except KeyError:
            raise TaskError(f"{path} must be a .csv, .parquet or .npy file") from None
        except Exception as error:  # each library has exceptions of its own
            raise TaskError(f"cannot read {path}: {str(error).strip().splitlines()[0]}") from error
        if not self._columns or not len(next(iter(self._columns.values()))):
            raise TaskError(f"{path} holds no rows")

    def column(self, name: str) -> list[Any]:
        """The cells of a column.

        Raises:
            TaskError: There is no such column, or a cell is empty.
        """
        if name not in self._columns:
            raise TaskError(f"{self._path} has no column {name!r}; it has {', '.join(self._columns)}")
        cells = self._columns[name]
        for row, cell in enumerate(cells):
            if cell is None or cell == "":
                raise self._error(row, name, "is empty; fill it in or leave the row out")
        return cells

    def words(self, name: str) -> list[str]:
        """The cells of a column as text."""
        return [str(cell) for cell in self.column(name)]

    def numbers(self, name: str) -> NDArray[np.float64]:
        """The cells of a column as finite numbers.

        Raises:
            TaskError: As `column`, or a cell is no finite number.
        """
        numbers = np.empty(len(self.column(name)))
        for row, cell in enumerate(self.column(name)):
            try:
                numbers[row] = float(cell)
            except (TypeError, ValueError):
                raise self._error(row, name, f"holds {cell!r}, expected a number") from None
        if not np.isfinite(numbers).all():
            row = int(np.flatnonzero(~np.isfinite(numbers))[0])
            raise self._error(row, name, f"holds {numbers[row]}, expected a finite number")
        return numbers

    def guess(self, name: str) -> Literal["class", "value"]:
        """Text is a class; so are whole numbers, if they are few."""
        cells = self.column(name)
        if any(isinstance(cell, float) for cell in cells):
            return "value"
        text = any(isinstance(cell, str | bool) for cell in cells)
        return "class" if text or len(set(cells)) <= _MOST_CLASSES else "value"

    def _error(self, row: int, column: str, what: str) -> TaskError:
        return TaskError(f"{self._path} row {row + self._first}: column {column} {what}")


def _read_csv(path: Path) -> dict[str, list[Any]]:
    import polars  # noqa: PLC0415  # slow to import, and for those with data of their own

    return polars.read_csv(path, infer_schema_length=None).to_dict(as_series=False)


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    import polars  # noqa: PLC0415

    return polars.read_parquet(path).to_dict(as_series=False)


def _read_npy(path: Path) -> dict[str, list[Any]]:
    """Columns by their names in a structured array, or by their numbers, from 0, in an array `[rows, columns]`."""
    array = np.load(path, allow_pickle=False)
    if array.dtype.names:
        return {name: array[name].tolist() for name in array.dtype.names}
    if array.ndim != 2:
        raise TaskError(f"it holds an array of {array.ndim} axes, expected [rows, columns] or named columns")
    return {str(column): array[:, column].tolist() for column in range(array.shape[1])}


_READERS: Final = {".csv": _read_csv, ".parquet": _read_parquet, ".npy": _read_npy}
