"""Reading steps from CSV, NPY and stdin."""

import asyncio
import csv
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray
from recurra.v1 import models_pb2

from recurra_client.cli.usererror import UserError
from recurra_client.tensors import numpy_dtype

_UNREADABLE: Final = (OSError, EOFError, UnicodeDecodeError, csv.Error)


class Row(NamedTuple):
    """One step: the inputs by name, each of the model's [dims], and what is true of it (empty if not known)."""

    inputs: Mapping[str, NDArray[Any]]
    truth: str


@dataclass(frozen=True, slots=True)
class Feed:
    """The steps of one session."""

    name: str
    rows: AsyncIterator[Row]
    total: int | None
    """Number of steps, where it is known beforehand."""


class Layout:
    """Where in a row of numbers the model's inputs lie: one after another, each flattened."""

    def __init__(self, model: models_pb2.Model) -> None:
        self.model = model
        self.labels = [label for spec in model.inputs for label in spec.labels]
        self.sizes = [int(np.prod(list(spec.dims), dtype=int)) for spec in model.inputs]
        self.width = sum(self.sizes)

    def inputs(self, values: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
        """The inputs by name, from a row of [width] numbers."""
        inputs: dict[str, NDArray[Any]] = {}
        start = 0
        for spec, size in zip(self.model.inputs, self.sizes, strict=True):
            part = values[start : start + size].reshape(list(spec.dims))
            inputs[spec.name] = part.astype(numpy_dtype(spec.dtype))
            start += size
        return inputs

    def describe(self) -> str:
        """What a row must hold, for people."""
        names = f" ({', '.join(self.labels)})" if self.labels else ""
        return f"model {self.model.name} takes {self.width} numbers a step{names}"


def open_feed(path: str, model: models_pb2.Model, truth: str) -> Feed:
    """The steps of a file ("-": of stdin, line by line as they come).

    Args:
        path: .npy of shape [T, dims], or else CSV.
        model: Whose inputs they are.
        truth: The CSV column that holds what is true. Empty: none.

    Raises:
        UserError: It cannot be read, or does not fit the model.
    """
    layout = Layout(model)
    if path == "-":
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8-sig")  # as files are read, whatever the terminal's
        return Feed("stdin", _live(_lines(sys.stdin), layout, truth), None)
    try:
        if path.endswith(".npy"):
            rows = list(_npy(path, layout, truth))
        else:
            with Path(path).open(newline="", encoding="utf-8-sig") as file:
                parse = CsvRows(path, layout, truth)
                rows = [row for line in csv.reader(file) if (row := parse(line)) is not None]
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    if not rows:
        raise UserError(f"{path} holds no steps")
    return Feed(Path(path).name, _all(rows), len(rows))


class CsvRows:
    """Turns the lines of a CSV file into steps. The first line may be a header.

    With a header, the columns are those named by the model's input labels if all are there, else all that
    hold a number in the first line of data, in their order. Without one, all columns are taken.
    """

    def __init__(self, name: str, layout: Layout, truth: str) -> None:
        self._name = name
        self._layout = layout
        self._truth = truth
        self._line = 0
        self._header: list[str] | None = None
        self._columns: list[int] = []
        self._truth_column = -1

    def __call__(self, line: list[str]) -> Row | None:
        """The step in a line; None for a header or an empty line.

        Raises:
            UserError: It does not fit the model.
        """
        self._line += 1
        if not any(cell.strip() for cell in line):
            return None
        if self._header is None:
            has_names = any(not _is_number(cell) for cell in line)
            self._header = [cell.strip() for cell in line] if has_names else []
            if self._truth:
                if self._truth not in self._header:
                    raise UserError(f"{self._name} has no column {self._truth!r}; it has {', '.join(self._header)}")
                self._truth_column = self._header.index(self._truth)
            if has_names:
                return None
        if not self._columns:
            self._columns = self._pick(line)
        values = np.empty(len(self._columns))
        for position, column in enumerate(self._columns):
            cell = line[column] if column < len(line) else ""
            try:
                values[position] = float(cell)
            except ValueError:
                title = self._header[column] if self._header else column + 1
                raise UserError(
                    f"{self._name} line {self._line}: column {title} holds {cell!r}, expected a number"
                ) from None
        known = 0 <= self._truth_column < len(line)
        return Row(self._layout.inputs(values), line[self._truth_column].strip() if known else "")

    def _pick(self, line: list[str]) -> list[int]:
        labels = self._layout.labels
        if labels and len(labels) == self._layout.width and self._header and set(labels) <= set(self._header):
            return [self._header.index(label) for label in labels]
        columns = [i for i, cell in enumerate(line) if i != self._truth_column and _is_number(cell)]
        if len(columns) != self._layout.width:
            raise UserError(f"{self._name} has {len(columns)} columns of numbers, but {self._layout.describe()}")
        return columns


def _npy(path: str, layout: Layout, truth: str) -> Iterator[Row]:
    if truth:
        raise UserError(f"{path} has no columns to take the truth {truth!r} from; use a CSV file")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    width = int(np.prod(array.shape[1:], dtype=int))
    if array.ndim == 0 or width != layout.width or array.dtype.kind not in "fiub":
        raise UserError(f"{path} holds {array.dtype} of shape {list(array.shape)}, but {layout.describe()}")
    for row in array:
        yield Row(layout.inputs(np.asarray(row, np.float64).reshape(-1)), "")


async def _all(rows: Iterable[Row]) -> AsyncIterator[Row]:
    for row in rows:
        yield row


async def _live(lines: AsyncIterator[str], layout: Layout, truth: str) -> AsyncIterator[Row]:
    parse = CsvRows("stdin", layout, truth)
    try:
        async for line in lines:
            if (row := parse(next(csv.reader([line]), []))) is not None:
                yield row
    except _UNREADABLE as error:
        raise _unreadable("stdin", error) from None


async def _lines(file: TextIO) -> AsyncIterator[str]:
    """The lines of a file as they come, read in a thread: a pipe may be silent for long."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | Exception] = asyncio.Queue()
    room = threading.Semaphore(1000)  # read ahead no further

    def read() -> None:
        end: str | Exception = ""
        try:
            for line in file:
                room.acquire()
                loop.call_soon_threadsafe(lines.put_nowait, line)
        except _UNREADABLE as error:
            end = error
        loop.call_soon_threadsafe(lines.put_nowait, end)

    threading.Thread(target=read, daemon=True).start()
    while line := await lines.get():
        if isinstance(line, Exception):
            raise line
        room.release()
        yield line


def _unreadable(path: str, error: Exception) -> UserError:
    return UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
