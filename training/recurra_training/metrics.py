"""How good a network is, and what answering without one would be worth."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recurra_training.data.recording import Recording, Split
from recurra_training.data.segments import Segment, pad
from recurra_training.data.task import Task
from recurra_training.describe import HasStates

_ROWS: Final = 512
"""Recordings that are run at a time where there are many."""


def loss(y: Tensor, segment: Segment, *, classes: bool, deviation: Tensor | None = None) -> Tensor:
    """Mean loss of the outputs `y` `[B, T, outputs]` over the steps at which an answer is asked for.

    Cross-entropy in nats for classes; squared error for values, in units of `deviation` `[outputs]` if that is given.
    """
    got, wanted = y[segment.mask], segment.target[segment.mask]
    if classes:
        return functional.cross_entropy(got, wanted)
    return functional.mse_loss(got, wanted) if deviation is None else ((got - wanted) / deviation).square().mean()


class Tally:
    """Adds up how good answers are, batch by batch."""

    def __init__(self, labels: Sequence[str], *, classes: bool) -> None:
        self._labels, self._classes = labels, classes
        self._steps = self._rows = 0
        self._sums: dict[str, float] = {}
        self._squares: Tensor = torch.zeros(len(labels), dtype=torch.float64)

    def add(self, y: Tensor, segment: Segment) -> None:
        """Count the outputs `y` `[B, T, outputs]` of whole recordings."""
        asked = segment.mask
        self._steps += int(asked.sum())
        some = asked.any(1)
        self._rows += int(some.sum())
        if not self._classes:
            self._squares += (y - segment.target)[asked].double().square().sum(0)
            return
        right = y.argmax(-1) == segment.target
        last = asked.shape[1] - 1 - asked.flip(1).int().argmax(1)
        found = {
            "accuracy": right[asked],
            "last_step_accuracy": right[torch.arange(len(right)), last][some],
            "whole_accuracy": (right | ~asked).all(1)[some],
            "bits": functional.cross_entropy(y[asked], segment.target[asked], reduction="none").double() / math.log(2),
        }
        for name, values in found.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(values.sum())

    def figures(self) -> dict[str, float]:
        """What has been found.

        For classes: `accuracy`, the share of all steps whose most likely class is right; `last_step_accuracy`, the
        same at the last step of each recording; `whole_accuracy`, the share of recordings that are right throughout;
        `bits`, the mean cross-entropy of a step. For values: `mse`, the mean squared error over all steps and outputs,
        `rmse`, its root, and, if there are several outputs, `rmse_<label>` of each.
        """
        if self._classes:
            rows = ("last_step_accuracy", "whole_accuracy")
            return {name: total / (self._rows if name in rows else self._steps) for name, total in self._sums.items()}
        squares = (self._squares / max(self._steps, 1)).tolist()
        mean = sum(squares) / len(squares)
        each = {f"rmse_{label}": math.sqrt(square) for label, square in zip(self._labels, squares, strict=True)}
        return {"mse": mean, "rmse": math.sqrt(mean)} | (each if len(squares) > 1 else {})


@torch.no_grad()
def answers(network: nn.Module, recordings: Sequence[Recording]) -> list[tuple[Tensor, Segment]]:
    """Run whole recordings from their beginning, some at a time; leaves the network in evaluation mode."""
    network.eval()
    states: HasStates = network  # type: ignore[assignment]  # every network that is trained here has them
    found = []
    for start in range(0, len(recordings), _ROWS):
        segment = pad(recordings[start : start + _ROWS])
        y, *_ = network(segment.x, *states.initial_states(len(segment.x)))
        found.append((y, segment))
    return found


def evaluate(network: nn.Module, recordings: Sequence[Recording], task: Task) -> dict[str, float]:
    """The figures of a network on whole recordings."""
    tally = Tally(task.output.labels or [""] * task.output.dims[0], classes=task.is_classes)
    for y, segment in answers(network, recordings):
        tally.add(y, segment)
    return tally.figures()


def asked_targets(recordings: Sequence[Recording]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32 | np.int64]]:
    """What should be answered, at all steps where an answer is asked for: `[steps, ...]`."""
    return np.concatenate([one.target if one.asked is None else one.target[one.asked] for one in recordings])


def constant_baseline(task: Task, split: Split) -> dict[str, float]:
    """What a constant answer is worth in the task's measure: `majority`, the most frequent class, or the `mean`.

    The constant is taken from the training recordings and judged on the test recordings.
    """
    known = asked_targets(split.train)
    if task.is_classes:
        constant = torch.zeros(task.output.dims[0])
        constant[int(np.bincount(known.astype(np.int64)).argmax())] = 1
    else:
        constant = torch.from_numpy(known.mean(0, dtype=np.float64).astype(np.float32))
    tally = Tally(task.output.labels or [""] * task.output.dims[0], classes=task.is_classes)
    for start in range(0, len(split.test), _ROWS):
        segment = pad(split.test[start : start + _ROWS])
        tally.add(constant.expand(*segment.mask.shape, -1), segment)
    return {"majority" if task.is_classes else "mean": tally.figures()[task.measure.name]}


def baselines(task: Task, split: Split) -> dict[str, float]:
    """What answering without a network is worth, by name."""
    return dict(task.baselines(split)) if task.baselines else constant_baseline(task, split)
