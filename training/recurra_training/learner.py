"""Teaches a network, segment by segment: truncated back-propagation through time (Williams & Peng, 1990)."""

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from recurra_training import metrics
from recurra_training.checkpoint import CHECKPOINT_KEY
from recurra_training.data.segments import Segment
from recurra_training.data.task import Task
from recurra_training.describe import HasStates
from recurra_training.errors import RunError
from recurra_training.layers import Rescale
from recurra_training.settings import Schedule


class Learner(pl.LightningModule):
    """A network in training.

    `about` goes into every checkpoint, for `checkpoint.load_trained`: how to build the network, what its numbers mean.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        *,
        learning_rate: float,
        seed: int,
        about: Mapping[str, Any],
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__()
        self.network = network
        self._classes = task.is_classes
        self._labels = task.output.labels or ("",) * task.output.dims[0]
        rescale = getattr(network, "rescale", None)
        self._deviation = rescale.deviation if isinstance(rescale, Rescale) else None
        self._learning_rate = learning_rate
        self._schedule = schedule
        self._seed = seed
        self._about = dict(about)
        self._states: tuple[Tensor, ...] = ()
        self._sums: dict[str, float] = {}

    def on_train_epoch_start(self) -> None:
        """Draw noise and dropout from the seed and the epoch alone: so a resumed run draws what it would have drawn.

        The step size too follows from the epoch: it may fall along half a cosine (Loshchilov & Hutter, 2017).
        """
        self._sums = {}
        if self._schedule == "cosine":
            passed = self.current_epoch / (self.trainer.max_epochs or 1)
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = self._learning_rate * (1 + math.cos(math.pi * passed)) / 2
        torch.manual_seed(int(np.random.default_rng([self._seed, self.current_epoch, 1]).integers(2**63)))

    def training_step(self, segment: Segment) -> Tensor | None:
        """Run on from the states that the last segment ended with; gradients do not flow back into that segment."""
        y, *after = self.network(segment.x, *(self._initial(segment) if segment.first else self._states))
        self._states = tuple(state.detach() for state in after)
        if not segment.mask.any():  # there is nothing to learn from here but what to remember
            return None if self.trainer.world_size == 1 else 0 * y.sum()  # the others wait for a gradient
        loss = metrics.loss(y, segment, classes=self._classes, deviation=self._deviation)
        if not loss.isfinite():
            raise RunError(
                f"the loss is {loss.item()} in epoch {self.current_epoch + 1}: mend the data, or try a smaller "
                "--learning-rate or --clip"
            )
        weight = int(segment.mask.sum())
        self._sums["train_loss"] = self._sums.get("train_loss", 0.0) + weight * loss.item()
        self._sums["weight"] = self._sums.get("weight", 0) + weight
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the norm of the gradient before it is clipped: of all, and of each layer."""
        del optimizer
        squares: dict[str, float] = {}
        for name, parameter in self.network.named_parameters():
            if parameter.grad is not None:
                layer = name.split(".")[0] + (f"_{name[-2:]}" if name[-2:-1] == "l" else "")
                squares[layer] = squares.get(layer, 0.0) + float(parameter.grad.square().sum())
        squares = {"": sum(squares.values())} | {f"_{layer}": square for layer, square in squares.items()}
        norms = {f"gradient{layer}": math.sqrt(square) for layer, square in squares.items()}
        for name, norm in norms.items():
            self._sums[name] = self._sums.get(name, 0.0) + norm
        self._sums["steps"] = self._sums.get("steps", 0) + 1

    def on_validation_epoch_start(self) -> None:
        """Count anew."""
        self._tally = metrics.Tally(self._labels, classes=self._classes)
        self._losses: list[tuple[float, int]] = []

    def validation_step(self, segment: Segment) -> None:
        """Score whole recordings."""
        y, *_ = self.network(segment.x, *self._initial(segment))
        self._tally.add(y, segment)
        loss = metrics.loss(y, segment, classes=self._classes, deviation=self._deviation)
        self._losses.append((loss.item(), int(segment.mask.sum())))

    def on_validation_epoch_end(self) -> None:
        """Log what was counted, and the means of the training epoch that went before.

        Those are logged at once, as logging takes longer than a step of a small network.
        """
        steps, weight = self._sums.pop("steps", 1), self._sums.pop("weight", 1)
        for name, total in self._sums.items():
            self.log(name, total / (weight if name == "train_loss" else steps))
        loss = sum(value * steps for value, steps in self._losses) / sum(steps for _, steps in self._losses)
        for name, value in (self._tally.figures() | {"loss": loss}).items():
            self.log(f"validation_{name}", value)

    def _initial(self, segment: Segment) -> tuple[Tensor, ...]:
        return cast("HasStates", self.network).initial_states(len(segment.x))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam (Kingma & Ba, 2015)."""
        return torch.optim.Adam(self.network.parameters(), lr=self._learning_rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the checkpoint is about."""
        checkpoint[CHECKPOINT_KEY] = self._about
