"""The settings of a training; each is a flag of `recurra train`."""

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from recurra_training.cells import Cell

_Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]
_Number = Annotated[int, Parameter(validator=validators.Number(gte=0))]
_AboveZero = Annotated[float, Parameter(validator=validators.Number(gt=0))]
_Share = Annotated[float, Parameter(validator=validators.Number(gte=0, lt=1))]
_NotNegative = Annotated[float, Parameter(validator=validators.Number(gte=0))]

ClipBy = Literal["norm", "value"]
Start = Literal["default", "orthogonal", "identity"]
Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train; `Changes` says what each of them is. Every task has its own, where these do not suit it."""

    cell: Cell = "lstm"
    hidden: int = 64
    layers: int = 1
    epochs: int = 100
    patience: int = 40
    seed: int = 0
    fold: int = 0
    learning_rate: float = 0.004
    schedule: Schedule = "constant"
    batch_size: int = 28
    segment_steps: int = 50
    clip: float = 1.0
    clip_by: ClipBy = "norm"
    dropout: float = 0.3
    input_noise: float = 0.3
    start: Start = "default"
    memory_steps: int = 0
    threads: int = 1
    processes: int = 1


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Changes:
    """Settings to train with, where they are to differ from those of the task."""

    hidden: _Count | None = None
    """Units of each layer."""
    layers: _Count | None = None
    """Layers of them."""
    epochs: _Count | None = None
    """Passes over the training recordings, at most."""
    patience: _Count | None = None
    """Stop after this many epochs without a better figure on the validation recordings; the best weights are kept."""
    seed: _Number | None = None
    """Seed of the weights, the order of the recordings and the noise."""
    fold: _Number | None = None
    """Which of the task's splits: each judges by other recordings."""
    learning_rate: _AboveZero | None = None
    """Step size of Adam."""
    schedule: Schedule | None = None
    """constant: the step size stays. cosine: it falls to 0 over the epochs, along half a cosine."""
    batch_size: _Count | None = None
    """Recordings in a batch."""
    segment_steps: _Count | None = None
    """Steps that back-propagation goes back over; the states are carried on from one segment to the next."""
    clip: _NotNegative | None = None
    """What the gradient is clipped to; 0: it is not."""
    clip_by: ClipBy | None = None
    """norm: shorten the whole gradient. value: cut each of its entries."""
    dropout: _Share | None = None
    """Share of the units silenced in training."""
    input_noise: _NotNegative | None = None
    """Noise added to the inputs in training, in standard deviations."""
    start: Start | None = None
    """What the recurrent weights begin as: PyTorch's default, an orthogonal matrix, or the identity."""
    memory_steps: _Number | None = None
    """Let the gates of an LSTM or GRU begin by remembering for up to so many steps; 0: as long as is usual."""
    threads: _Count | None = None
    """Threads of PyTorch; a small network is no faster with more."""
    processes: _Count | None = None
    """Processes that share the work; each takes its part of every batch."""

    def applied_to(self, settings: Settings) -> Settings:
        """The settings with these changes."""
        return replace(settings, **{name: value for name, value in asdict(self).items() if value is not None})
