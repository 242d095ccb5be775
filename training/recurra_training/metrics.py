"""How good a network is, and what answering without one would be worth."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from recurra_training.data.segments import Segment, pad
from recurra_training.data.task import Recording
from recurra_training.models import Network
from recurra_training.signature import Kind


class Measure(NamedTuple):
    """The figure that a task is judged by, and whether the best is the highest (`max`) or the lowest (`min`)."""

    name: str
    best: Literal["max", "min"]


def measure(kind: Kind) -> Measure:
    """The share of steps that are right for classes, the root of the mean squared error for values."""
    return Measure("accuracy", "max") if kind == "probability" else Measure("rmse", "min")


def loss(y: Tensor, segment: Segment, kind: Kind) -> Tensor:
    """Mean loss of the outputs `y` `[B, T, outputs]` over the steps that are there.

    Cross-entropy in nats for classes, squared error for values.
    """
    if kind == "probability":
        return functional.cross_entropy(y[segment.mask], segment.target[segment.mask])
    return functional.mse_loss(y[segment.mask], segment.target[segment.mask])


def score(y: Tensor, segment: Segment, kind: Kind) -> dict[str, float]:
    """Figures for the outputs `y` `[B, T, outputs]` of whole recordings.

    For classes `accuracy`, the share of all steps whose most likely class is right, and `last_step_accuracy`, the
    same at the last step of each recording; for values `rmse`, in the unit of the values.
    """
    if kind != "probability":
        return {"rmse": loss(y, segment, kind).sqrt().item()}
    right = y.argmax(-1) == segment.target
    last = segment.mask.sum(1) - 1
    return {
        "accuracy": right[segment.mask].float().mean().item(),
        "last_step_accuracy": right[torch.arange(len(right)), last].float().mean().item(),
    }


@torch.no_grad()
def evaluate(network: Network, recordings: Sequence[Recording], kind: Kind) -> dict[str, float]:
    """Run whole recordings from their beginning and score the answers; leaves the network in evaluation mode."""
    network.eval()
    segment = pad(recordings)
    y, *_ = network(segment.x, *network.initial_states(len(recordings)))
    return score(y, segment, kind)


def constant_score(train: Sequence[Recording], test: Sequence[Recording], kind: Kind) -> dict[str, float]:
    """What a constant answer is worth: `majority_accuracy` for the most frequent class, `mean_rmse` for the mean.

    The constant is taken from `train` and judged on `test`, over all steps.
    """
    known = np.concatenate([recording.target for recording in train])
    unseen = np.concatenate([recording.target for recording in test])
    if kind == "probability":
        return {"majority_accuracy": float(np.mean(unseen == np.bincount(known).argmax()))}
    return {"mean_rmse": float(np.sqrt(np.mean((unseen - known.mean(0)) ** 2)))}
