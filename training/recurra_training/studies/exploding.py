"""The exploding gradient: one training that blows up, and does not when its gradient is clipped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from recurra_training.data.adding import adding_problem
from recurra_training.models import RecurrentNet
from recurra_training.report.style import picture
from recurra_training.settings import ClipBy

_STEPS: Final = 100
_HIDDEN: Final = 64
_ROWS: Final = 64
_GAIN: Final = 1.25
"""Largest singular value of the recurrent matrix at the beginning: above 1, and what goes through it grows."""
_LEARNING_RATE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Course:
    """A training: loss and gradient norm (before clipping) of each iteration; it ends where a number is no more."""

    name: str
    losses: list[float]
    norms: list[float]

    @property
    def ended(self) -> str:
        """How it went, in words."""
        last = self.losses[-1]
        if not math.isfinite(last):
            return f"not a number after {len(self.losses)} iterations"
        return f"loss {last:.3g} after {len(self.losses)} iterations, at worst {max(self.losses):.3g}"


def train_with(clip: float, clip_by: ClipBy = "norm", *, name: str, iterations: int = 100, seed: int = 0) -> Course:
    """Teach a ReLU network the adding problem by plain gradient descent; `clip` 0: as the gradient comes."""
    torch.manual_seed(seed)
    network = RecurrentNet(2, 1, cell="rnn-relu", hidden=_HIDDEN)
    recurrent = network.recurrence.weight_hh_l0
    assert isinstance(recurrent, nn.Parameter)  # noqa: S101  # PyTorch names it so
    with torch.no_grad():
        nn.init.orthogonal_(recurrent, gain=_GAIN)
    optimizer = torch.optim.SGD(network.parameters(), lr=_LEARNING_RATE)
    rng = np.random.default_rng(seed)
    course = Course(name, [], [])
    for _ in range(iterations):
        x, y = (torch.from_numpy(values) for values in adding_problem(_ROWS, _STEPS, rng))
        answer, *_ = network(x)
        loss = nn.functional.mse_loss(answer[:, -1, 0], y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if clip and clip_by == "value":
            norm = torch.linalg.vector_norm(
                torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None])
            )
            nn.utils.clip_grad_value_(network.parameters(), clip)
        else:
            norm = nn.utils.clip_grad_norm_(network.parameters(), clip or math.inf, error_if_nonfinite=False)
        course.losses.append(loss.item())
        course.norms.append(norm.item())
        if not (math.isfinite(course.losses[-1]) and math.isfinite(course.norms[-1])):
            break
        optimizer.step()
    return course


def courses(iterations: int = 100, seed: int = 0) -> list[Course]:
    """Without clipping, clipped by norm, clipped by value."""
    return [
        train_with(0, name="not clipped", iterations=iterations, seed=seed),
        train_with(1.0, name="clipped by norm, to 1", iterations=iterations, seed=seed),
        train_with(0.01, "value", name="clipped by value, to 0.01", iterations=iterations, seed=seed),
    ]


def draw(path: Path, shown: Sequence[Course]) -> None:
    """Loss and gradient norm by iteration; a cross is where a training ended."""
    with picture(path, columns=2, size=(10, 3.6)) as (_, (left, right)):
        for course, shade in zip(shown, ("#d55e00", "#0072b2", "#009e73"), strict=True):
            for axis, values in ((left, course.losses), (right, course.norms)):
                finite = [value for value in values if math.isfinite(value)]
                axis.plot(range(1, len(finite) + 1), finite, color=shade, label=course.name, linewidth=1.3)
                if len(finite) < len(values):
                    axis.plot(len(finite), finite[-1], "X", color=shade, markersize=9)
        left.set(title="Loss", xlabel="iteration", ylabel="mean squared error", yscale="log")
        right.set(title="Gradient", xlabel="iteration", ylabel="norm before clipping", yscale="log")
        left.legend()
