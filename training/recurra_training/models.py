"""The networks. All have one shape: `forward(x, *states) -> (y, *states)`.

The states are passed, not hidden, so the same network runs a sequence whole, in chunks or step by step, and its
exported graph is what training saw. A feed-forward network is the same thing with no states.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from recurra_training.cells import Cell


class _Recurrence(NamedTuple):
    layer: Callable[..., nn.RNNBase]
    options: dict[str, str]
    states: tuple[str, ...]


_RECURRENCES: Final[dict[str, _Recurrence]] = {
    "rnn": _Recurrence(nn.RNN, {"nonlinearity": "tanh"}, ("h",)),
    "rnn-relu": _Recurrence(nn.RNN, {"nonlinearity": "relu"}, ("h",)),
    "gru": _Recurrence(nn.GRU, {}, ("h",)),
    "lstm": _Recurrence(nn.LSTM, {}, ("h", "c")),
}


class Normalise(nn.Module):
    """Takes raw readings `[..., features]` to mean 0 and standard deviation 1.

    It is a layer of the network, not a step before it: so it is exported with it, and a caller sends raw readings.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    @torch.no_grad()
    def fit(self, readings: Tensor) -> None:
        """Take mean and standard deviation from `readings` `[steps, features]`; a constant feature is only centred."""
        deviation = readings.double().std(0)
        self.mean.copy_(readings.double().mean(0))
        self.scale.copy_(torch.where(deviation > 0, 1 / deviation, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x`."""
        return (x - self.mean) * self.scale


class InputNoise(nn.Module):
    """Adds Gaussian noise in training, in units of the standard deviation; a network then trusts no single reading."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        """Add the noise."""
        return x + self.deviation * torch.randn_like(x) if self.training and self.deviation else x


class Network(nn.Module):
    """What all networks share: raw inputs `[B, T, inputs]`, outputs `[B, T, outputs]`, float32.

    The outputs are logits where the task has classes; the exported graph turns them into probabilities.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, inputs: int, outputs: int, *, input_noise: float = 0.0) -> None:
        super().__init__()
        self.inputs = inputs
        self.outputs = outputs
        self.normalise = Normalise(inputs)
        self.noise = InputNoise(input_noise)

    def initial_states(self, batch: int) -> tuple[Tensor, ...]:
        """The states before the first step of `batch` sequences; empty for a network without memory."""
        del batch
        return ()


class FeedForward(Network):
    """Considers only the current input: linear layers with ReLU between them."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: int = 64,
        layers: int = 1,
        dropout: float = 0.0,
        input_noise: float = 0.0,
    ) -> None:
        super().__init__(inputs, outputs, input_noise=input_noise)
        widths = [inputs] + [hidden] * layers
        blocks: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            blocks += [nn.Linear(width, next_width), nn.ReLU(), nn.Dropout(dropout)]
        self.body = nn.Sequential(*blocks, nn.Linear(hidden, outputs))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """`x` `[B, T, inputs]` -> (`y` `[B, T, outputs]`,)."""
        return (self.body(self.noise(self.normalise(x))),)


class RecurrentNet(Network):
    """A plain RNN, GRU or LSTM of one or more layers, with a linear layer behind it.

    The states are of shape `[layers, B, hidden]`: `h`, and for an LSTM also `c`; they begin at zero.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        cell: Cell = "lstm",
        hidden: int = 64,
        layers: int = 1,
        dropout: float = 0.0,
        input_noise: float = 0.0,
        forget_bias: float = 1.0,
    ) -> None:
        """Build the network.

        Args:
            inputs: Features of a reading.
            outputs: Classes, or values predicted.
            cell: Any of `Cell` but ffnn.
            hidden: Units of each layer.
            layers: Recurrent layers, each reading the one below.
            dropout: Share of the units silenced in training, between layers and before the last one.
            input_noise: See `InputNoise`.
            forget_bias: Added to the bias of an LSTM's forget gate, so that it begins by remembering
                (Jozefowicz et al., 2015).
        """
        super().__init__(inputs, outputs, input_noise=input_noise)
        layer, options, self.state_names = _RECURRENCES[cell]
        between = dropout if layers > 1 else 0.0
        self.recurrence = layer(inputs, hidden, layers, batch_first=True, dropout=between, **options)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, outputs)
        if cell == "lstm":
            for name, bias in self.recurrence.named_parameters():
                if name.startswith("bias_ih"):  # the gates stand in the order i, f, g, o
                    bias.data[hidden : 2 * hidden] += forget_bias

    def initial_states(self, batch: int) -> tuple[Tensor, ...]:
        """Zeros."""
        shape = (self.recurrence.num_layers, batch, self.recurrence.hidden_size)
        return tuple(self.head.weight.new_zeros(shape) for _ in self.state_names)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """`x` `[B, T, inputs]` and the states before it -> (`y` `[B, T, outputs]`, the states after it).

        Given no states, a sequence begins.
        """
        states = states or self.initial_states(x.shape[0])
        features = self.noise(self.normalise(x))
        if len(states) == 1:  # PyTorch takes the one state of an RNN or GRU bare, and the two of an LSTM as a tuple
            y, *after = self.recurrence(features, states[0])
        else:
            y, after = self.recurrence(features, states)
        return self.head(self.dropout(y)), *after


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """All that is needed to build a network anew; it is kept in every checkpoint."""

    cell: Cell
    inputs: int
    outputs: int
    hidden: int = 64
    layers: int = 1
    dropout: float = 0.0
    input_noise: float = 0.0

    def build(self) -> Network:
        """The network, with random weights from PyTorch's global generator."""
        if self.cell == "ffnn":
            return FeedForward(
                self.inputs,
                self.outputs,
                hidden=self.hidden,
                layers=self.layers,
                dropout=self.dropout,
                input_noise=self.input_noise,
            )
        return RecurrentNet(
            self.inputs,
            self.outputs,
            cell=self.cell,
            hidden=self.hidden,
            layers=self.layers,
            dropout=self.dropout,
            input_noise=self.input_noise,
        )
