"""Teaches a network, segment by segment: truncated back-propagation through time (Williams & Peng, 1990)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from recurra_training import metrics
from recurra_training.checkpoint import CHECKPOINT_KEY
from recurra_training.data.segments import Segment
from recurra_training.errors import RunError
from recurra_training.models import Network
from recurra_training.signature import Kind


class Learner(pl.LightningModule):
    """A network in training.

    `about` goes into every checkpoint, for `checkpoint.load_trained`: how to build the network, what its numbers mean.
    """

    def __init__(
        self, network: Network, *, kind: Kind, learning_rate: float, seed: int, about: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.network = network
        self._kind = kind
        self._learning_rate = learning_rate
        self._seed = seed
        self._about = dict(about)
        self._states: tuple[Tensor, ...] = ()

    def on_train_epoch_start(self) -> None:
        """Draw noise and dropout from the seed and the epoch alone: so a resumed run draws what it would have drawn."""
        torch.manual_seed(int(np.random.default_rng([self._seed, self.current_epoch, 1]).integers(2**63)))

    def training_step(self, segment: Segment) -> Tensor:
        """Run on from the states that the last segment ended with; gradients do not flow back into that segment."""
        states = self.network.initial_states(len(segment.x)) if segment.first else self._states
        y, *after = self.network(segment.x, *states)
        self._states = tuple(state.detach() for state in after)
        loss = metrics.loss(y, segment, self._kind)
        if not loss.isfinite():
            raise RunError(
                f"the loss is {loss.item()} in epoch {self.current_epoch + 1}: mend the data, or try a smaller "
                "--learning-rate or --clip"
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=int(segment.mask.sum()))
        return loss

    def validation_step(self, segment: Segment) -> None:
        """Score whole recordings."""
        y, *_ = self.network(segment.x, *self.network.initial_states(len(segment.x)))
        scores = metrics.score(y, segment, self._kind) | {"loss": metrics.loss(y, segment, self._kind).item()}
        for name, value in scores.items():
            self.log(f"validation_{name}", value, batch_size=len(segment.x))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam (Kingma & Ba, 2015)."""
        return torch.optim.Adam(self.network.parameters(), lr=self._learning_rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the checkpoint is about."""
        checkpoint[CHECKPOINT_KEY] = self._about
