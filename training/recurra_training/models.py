"""The networks. All have one shape: `forward(x, *states) -> (y, *states)`.

The states are passed, not hidden, so the same network runs a sequence whole, in chunks or step by step, and its
exported graph is what training saw. A feed-forward network is the same thing with no states.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from torch import Tensor, nn

from recurra_training.cells import Cell
from recurra_training.initialise import remember, start_from
from recurra_training.layers import InputNoise, Normalise, Rescale
from recurra_training.settings import Start

EMBEDDING: Final = 32
"""Numbers that stand for a token."""


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


class Network(nn.Module):
    """What all networks share: raw inputs in, float32 outputs `[B, T, outputs]` in the units of the task.

    An input is of readings, float32 `[B, T, inputs]`, or of tokens, int64 `[B, T]`. The outputs are logits where the
    task has classes.
    """

    state_names: tuple[str, ...] = ()

    def __init__(
        self, inputs: int, outputs: int, *, tokens: int = 0, values: bool = False, input_noise: float = 0.0
    ) -> None:
        """Set up the first and the last layer.

        Args:
            inputs: Features of a reading; with `tokens`, of what stands for a token.
            outputs: Classes, or values predicted.
            tokens: How many tokens there are; 0: the input is readings.
            values: Whether the outputs are values, which have a scale, and not logits.
            input_noise: See `InputNoise`.
        """
        super().__init__()
        self.inputs, self.outputs, self.tokens = inputs, outputs, tokens
        self.normalise: nn.Module = nn.Embedding(tokens, inputs) if tokens else Normalise(inputs)
        self.noise = InputNoise(input_noise)
        self.rescale: nn.Module = Rescale(outputs) if values else nn.Identity()

    def read(self, x: Tensor) -> Tensor:
        """Raw inputs -> features `[B, T, inputs]`."""
        return self.noise(self.normalise(x))  # type: ignore[no-any-return]  # nn.Module's calls are untyped

    def fit_scales(self, readings: Tensor | None, targets: Tensor | None) -> None:
        """Take the scales of the first and last layer from `[steps, ...]` of the data; None: leave one as it is."""
        if readings is not None and isinstance(self.normalise, Normalise):
            self.normalise.fit(readings)
        if targets is not None and isinstance(self.rescale, Rescale):
            self.rescale.fit(targets)

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
        tokens: int = 0,
        values: bool = False,
        hidden: int = 64,
        layers: int = 1,
        dropout: float = 0.0,
        input_noise: float = 0.0,
    ) -> None:
        super().__init__(inputs, outputs, tokens=tokens, values=values, input_noise=input_noise)
        widths = [inputs] + [hidden] * layers
        blocks: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            blocks += [nn.Linear(width, next_width), nn.ReLU(), nn.Dropout(dropout)]
        self.body = nn.Sequential(*blocks, nn.Linear(hidden, outputs))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """`x` -> (`y` `[B, T, outputs]`,)."""
        return (self.rescale(self.body(self.read(x))),)


class RecurrentNet(Network):
    """A plain RNN, GRU or LSTM of one or more layers, with a linear layer behind it.

    The states are of shape `[layers, B, hidden]`: `h`, and for an LSTM also `c`; they begin at zero.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        tokens: int = 0,
        values: bool = False,
        cell: Cell = "lstm",
        hidden: int = 64,
        layers: int = 1,
        dropout: float = 0.0,
        input_noise: float = 0.0,
        forget_bias: float = 1.0,
        start: Start = "default",
        memory_steps: int = 0,
    ) -> None:
        """Build the network.

        Args:
            inputs: As for `Network`.
            outputs: As for `Network`.
            tokens: As for `Network`.
            values: As for `Network`.
            cell: Any of `Cell` but ffnn.
            hidden: Units of each layer.
            layers: Recurrent layers, each reading the one below.
            dropout: Share of the units silenced in training, between layers and before the last one.
            input_noise: See `InputNoise`.
            forget_bias: Added to the bias of an LSTM's forget gate, so that it begins by remembering
                (Jozefowicz et al., 2015).
            start: See `initialise.start_from`.
            memory_steps: See `initialise.remember`; 0: `forget_bias` it is.
        """
        super().__init__(inputs, outputs, tokens=tokens, values=values, input_noise=input_noise)
        layer, options, self.state_names = _RECURRENCES[cell]
        between = dropout if layers > 1 else 0.0
        self.recurrence = layer(inputs, hidden, layers, batch_first=True, dropout=between, **options)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, outputs)
        start_from(self.recurrence, start)
        if memory_steps:
            remember(self.recurrence, memory_steps)
        elif cell == "lstm":
            for name, bias in self.recurrence.named_parameters():
                if name.startswith("bias_ih"):  # the gates stand in the order i, f, g, o
                    bias.data[hidden : 2 * hidden] += forget_bias

    def initial_states(self, batch: int) -> tuple[Tensor, ...]:
        """Zeros."""
        shape = (self.recurrence.num_layers, batch, self.recurrence.hidden_size)
        return tuple(self.head.weight.new_zeros(shape) for _ in self.state_names)

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """`x` and the states before it -> (`y` `[B, T, outputs]`, the states after it).

        Given no states, a sequence begins.
        """
        states = states or self.initial_states(x.shape[0])
        features = self.read(x)
        if len(states) == 1:  # PyTorch takes the one state of an RNN or GRU bare, and the two of an LSTM as a tuple
            y, *after = self.recurrence(features, states[0])
        else:
            y, after = self.recurrence(features, states)
        return self.rescale(self.head(self.dropout(y))), *after


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """All that is needed to build a network anew; it is kept in every checkpoint."""

    cell: Cell
    inputs: int
    outputs: int
    tokens: int = 0
    values: bool = False
    source_tokens: int = 0
    hidden: int = 64
    layers: int = 1
    dropout: float = 0.0
    input_noise: float = 0.0
    start: Start = "default"
    memory_steps: int = 0
