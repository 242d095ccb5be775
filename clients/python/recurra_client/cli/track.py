"""What has been predicted in one session so far, and how well and how fast."""

from array import array
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from recurra.v1 import models_pb2

from recurra_client.cli.usererror import UserError
from recurra_client.results import StepInfo

UNKNOWN: Final = -1
RECENT: Final = 100


class Reading:
    """How a model's first output that is not optional is read: as the probabilities of classes, or as values."""

    def __init__(self, model: models_pb2.Model) -> None:
        spec = next(spec for spec in model.outputs if not spec.optional)
        self.output = spec.name
        self.width = int(np.prod(list(spec.dims), dtype=int))
        self.is_classes = spec.kind in ("probability", "logit") and self.width > 1
        self._softmax = spec.kind == "logit"
        named = len(spec.labels) == self.width
        self.labels = list(spec.labels) if named else [f"{spec.name}[{i}]" for i in range(self.width)]
        if self.width == 1 and not named:
            self.labels = [spec.name]
        self.unit = spec.units[0] if spec.units else ""

    def rows(self, output: NDArray[Any], count: int) -> NDArray[np.float64]:
        """An output of `count` steps as [count, width]; for classes, as probabilities."""
        rows = np.asarray(output, np.float64).reshape(count, self.width)
        if self._softmax and self.is_classes:
            rows = np.exp(rows - rows.max(axis=1, keepdims=True))
            rows /= rows.sum(axis=1, keepdims=True)
        return rows

    def truth(self, text: str) -> float:
        """What is true as a number: a class's index by its label or index, or a value; NaN if it is not known.

        Raises:
            UserError: It is neither.
        """
        if not text:
            return np.nan
        if self.is_classes and text in self.labels:
            return self.labels.index(text)
        try:
            value = float(text)
        except ValueError:
            value = np.nan
        if np.isnan(value) or (self.is_classes and value not in range(self.width)):
            wanted = f"one of {', '.join(self.labels)}" if self.is_classes else "a number"
            raise UserError(f"the truth {text!r} is not {wanted}")
        return value


def _doubles() -> "array[float]":
    return array("d")


@dataclass(slots=True)
class Track:
    """The course of one session. Times are in seconds, one for each message (a step or a chunk)."""

    name: str
    reading: Reading
    total: int | None = None
    outputs: "array[float]" = field(default_factory=_doubles)
    truths: "array[float]" = field(default_factory=_doubles)
    latencies: "array[float]" = field(default_factory=_doubles)
    queues: "array[float]" = field(default_factory=_doubles)
    computes: "array[float]" = field(default_factory=_doubles)
    batch_sizes: "array[float]" = field(default_factory=_doubles)
    replayed: int = 0

    def add(self, outputs: NDArray[np.float64], truths: list[float], info: StepInfo) -> None:
        """Record the outputs [count, width] of one message, and what is true of each step."""
        self.outputs.extend(outputs.ravel())
        self.truths.extend(truths)
        self.latencies.append(info.latency)
        self.queues.append(info.queue)
        self.computes.append(info.compute)
        self.batch_sizes.append(info.batch_size)
        self.replayed += info.replayed

    @property
    def steps(self) -> int:
        """Number of steps answered."""
        return len(self.truths)

    def values(self, last: int | None = None) -> NDArray[np.float64]:
        """The outputs, [steps, width]: all, or the last so many."""
        count = self.steps if last is None else min(last, self.steps)
        # A copy: while a view is alive, the array could not grow.
        tail = self.outputs[len(self.outputs) - count * self.reading.width :]
        return np.array(tail, np.float64).reshape(count, self.reading.width)

    def truth(self) -> NDArray[np.float64]:
        """What is true of each step, [steps]; NaN where it is not known."""
        return np.array(self.truths, np.float64)

    def predicted_classes(self) -> NDArray[np.int64]:
        """The most likely class of each step, [steps]."""
        return np.argmax(self.values(), axis=1) if self.steps else np.empty(0, np.int64)

    def true_classes(self) -> NDArray[np.int64]:
        """The true class of each step, [steps]; UNKNOWN where it is not known."""
        truth = self.truth()
        return np.where(np.isnan(truth), UNKNOWN, np.nan_to_num(truth)).astype(np.int64)

    def score(self, last: int | None = None) -> float | None:
        """Accuracy over the classes, or root mean square error of the first value; None where no truth is known."""
        truth = self.truth()[-last if last else None :]
        known = ~np.isnan(truth)
        if not known.any():
            return None
        values = self.values(last)[known]
        if self.reading.is_classes:
            return float(np.mean(np.argmax(values, axis=1) == truth[known]))
        return float(np.sqrt(np.mean((values[:, 0] - truth[known]) ** 2)))

    def latency(self, percentile: float) -> float:
        """Percentile of the messages' latency, in seconds."""
        return float(np.percentile(np.array(self.latencies), percentile)) if self.latencies else 0.0

    @property
    def score_name(self) -> str:
        """What `score` is."""
        return "accuracy" if self.reading.is_classes else "RMSE"

    def score_text(self, last: int | None = None) -> str:
        """The score for people; empty where there is none."""
        score = self.score(last)
        if score is None:
            return ""
        return f"{score:.1%}" if self.reading.is_classes else f"{score:.4g}"
