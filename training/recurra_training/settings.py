"""The settings of a training; each is a flag of `recurra train`."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter, validators

from recurra_training.cells import Cell

_Positive = Annotated[int, Parameter(validator=validators.Number(gte=1))]
_AboveZero = Annotated[float, Parameter(validator=validators.Number(gt=0))]
_Share = Annotated[float, Parameter(validator=validators.Number(gte=0, lt=1))]
_NotNegative = Annotated[float, Parameter(validator=validators.Number(gte=0))]


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Settings:
    """How to train."""

    cell: Cell = "lstm"
    """Kind of network; ffnn has no memory."""
    hidden: _Positive = 64
    """Units of each layer."""
    layers: _Positive = 1
    """Layers of them."""
    epochs: _Positive = 100
    """Passes over the training recordings, at most."""
    patience: _Positive = 40
    """Stop after this many epochs without a better figure on the validation recordings; the best weights are kept."""
    seed: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0
    """Seed of the weights, the order of the recordings and the noise."""
    learning_rate: _AboveZero = 0.004
    """Step size of Adam."""
    batch_size: _Positive = 28
    """Recordings in a batch."""
    segment_steps: _Positive = 50
    """Steps that back-propagation goes back over; the states are carried on from one segment to the next."""
    clip: _AboveZero = 1.0
    """Norm that the gradient is clipped to."""
    dropout: _Share = 0.3
    """Share of the units silenced in training."""
    input_noise: _NotNegative = 0.3
    """Noise added to the inputs in training, in standard deviations."""
    threads: _Positive = 1
    """Threads of PyTorch; a small network is no faster with more."""
