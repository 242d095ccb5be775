"""Writing predictions as CSV."""

import csv
from collections.abc import Sequence
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from recurra_client.cli.plain import plain
from recurra_client.cli.track import Reading


class PredictionsWriter:
    """Writes a line for each step, as soon as its output is there, for a pipe to go on with."""

    def __init__(self, file: TextIO, reading: Reading) -> None:
        self._file = file
        self._reading = reading
        self._labels = [plain(label) for label in reading.labels]
        self._csv = csv.writer(file, lineterminator="\n")
        predicted = ["predicted"] if reading.is_classes else []
        self._csv.writerow(["file", "step", "true", *predicted, *self._labels, "latency_ms"])

    def write(
        self, name: str, first_step: int, outputs: NDArray[np.float64], truths: Sequence[str], latency: float
    ) -> None:
        """Write the outputs [count, width] of one message, whose first step has the number given."""
        for offset, (row, truth) in enumerate(zip(outputs, truths, strict=True)):
            predicted = [self._labels[int(np.argmax(row))]] if self._reading.is_classes else []
            numbers = [f"{value:.7g}" for value in row]
            self._csv.writerow([name, first_step + offset, truth, *predicted, *numbers, f"{latency * 1e3:.3f}"])
        self._file.flush()
