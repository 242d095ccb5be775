"""The long short-term memory, written from its equations.

Hochreiter and Schmidhuber, 1997, Neural Computation 9(8); the forget gate: Gers, Schmidhuber and Cummins, 2000, Neural
Computation 12(10).

    f  = sigmoid(W_f [h, x] + b_f)    what is kept of the memory
    i  = sigmoid(W_i [h, x] + b_i)    where something new is written
    C~ = tanh   (W_C [h, x] + b_C)    what would be written
    o  = sigmoid(W_o [h, x] + b_o)    what is read of it
    C' = f * C + i * C~               the memory: kept, written
    h' = o * tanh(C')                 the answer: read

`torch.nn.LSTM` computes the same, faster, but shows only h at every step. This one shows all of it, and its weights go
to PyTorch's and back.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan  # becomes ONNX's Scan; PyTorch has no public name for it yet

_Tensors = tuple[Tensor, ...]


class Gates(NamedTuple):
    """What happens inside at a step: each `[B, hidden]` of one cell, `[B, T, layers, hidden]` of an `LSTM`."""

    f: Tensor
    i: Tensor
    c_tilde: Tensor
    o: Tensor
    c: Tensor
    """The memory after the step."""


class LSTMCell(nn.Module):
    """One step of one layer; the equations above, as they stand."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.inputs, self.hidden = inputs, hidden
        self.forget = nn.Linear(hidden + inputs, hidden)
        self.input = nn.Linear(hidden + inputs, hidden)
        self.candidate = nn.Linear(hidden + inputs, hidden)
        self.output = nn.Linear(hidden + inputs, hidden)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Gates]:
        """`x` `[B, inputs]`, `h` and `c` `[B, hidden]` before the step -> `h` after it, and the gates."""
        both = torch.cat([h, x], dim=-1)
        f = torch.sigmoid(self.forget(both))
        i = torch.sigmoid(self.input(both))
        c_tilde = torch.tanh(self.candidate(both))
        o = torch.sigmoid(self.output(both))
        c = f * c + i * c_tilde
        h = o * torch.tanh(c)
        return h, Gates(f, i, c_tilde, o, c)

    def in_torch_order(self) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
        """The layers as `torch.nn.LSTM` has them below one another: i, f, g (that is C~), o."""
        return self.input, self.forget, self.candidate, self.output


class LSTM(nn.Module):
    """Layers of cells over time. It can be exported as it is, and then answers y and the gates of every step."""

    state_names = ("h", "c")

    def __init__(self, inputs: int, hidden: int, layers: int = 1) -> None:
        super().__init__()
        self.hidden = hidden
        self.cells = nn.ModuleList(LSTMCell(hidden if layer else inputs, hidden) for layer in range(layers))

    def initial_states(self, batch: int) -> tuple[Tensor, Tensor]:
        """Zeros."""
        weight = next(self.parameters())
        shape = (len(self.cells), batch, self.hidden)
        return weight.new_zeros(shape), weight.new_zeros(shape)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        """Run T steps.

        Args:
            x: `[B, T, inputs]`.
            h: `[layers, B, hidden]`, before the first step.
            c: As `h`.

        Returns:
            y `[B, T, hidden]`, h of the last layer; `Gates`, each `[B, T, layers, hidden]`; h and c at the end.
        """
        over_time = _scan if torch.compiler.is_exporting() else _loop
        ended: list[tuple[Tensor, Tensor]] = []
        seen: list[tuple[Tensor, ...]] = []
        for layer, cell in enumerate(self.cells):
            h_after, c_after, x, *gates = over_time(cast("LSTMCell", cell), x, h[layer], c[layer])
            ended.append((h_after, c_after))
            seen.append(tuple(gates))
        gates_of_all = (torch.stack(layers, dim=2) for layers in zip(*seen, strict=True))
        return x, *gates_of_all, *(torch.stack(states) for states in zip(*ended, strict=True))

    @classmethod
    @torch.no_grad()
    def from_torch(cls, source: nn.LSTM) -> "LSTM":
        """The same network as PyTorch's, with a copy of its weights.

        Raises:
            ValueError: It is bidirectional, has projections, or no biases.
        """
        if source.bidirectional or source.proj_size or not source.bias:
            raise ValueError("expected a torch.nn.LSTM of one direction, with biases and without projections")
        made = cls(source.input_size, source.hidden_size, source.num_layers)
        made.to(next(source.parameters()))
        for layer, cell in enumerate(cast("list[LSTMCell]", list(made.cells))):
            w_x, w_h, b_x, b_h = (getattr(source, name) for name in _names(layer))
            weights, biases = torch.cat([w_h, w_x], dim=1), b_x + b_h
            for gate, weight, bias in zip(cell.in_torch_order(), weights.chunk(4), biases.chunk(4), strict=True):
                gate.weight.copy_(weight)
                gate.bias.copy_(bias)
        return made

    @torch.no_grad()
    def to_torch(self) -> nn.LSTM:
        """The same network as a `torch.nn.LSTM` (`batch_first`). PyTorch has two biases; the second is 0."""
        cells = cast("list[LSTMCell]", list(self.cells))
        made = nn.LSTM(cells[0].inputs, self.hidden, len(cells), batch_first=True).to(next(self.parameters()))
        for layer, cell in enumerate(cells):
            w_x, w_h, b_x, b_h = (getattr(made, name) for name in _names(layer))
            weights = torch.cat([gate.weight for gate in cell.in_torch_order()])
            w_h.copy_(weights[:, : self.hidden])
            w_x.copy_(weights[:, self.hidden :])
            b_x.copy_(torch.cat([gate.bias for gate in cell.in_torch_order()]))
            b_h.zero_()
        return made


def _names(layer: int) -> tuple[str, ...]:
    return tuple(f"{kind}_l{layer}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))


def _loop(cell: LSTMCell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """One layer over time: h and c after it, `[B, hidden]`; h and the gates of each step, `[B, T, hidden]`."""
    seen = []
    for step in x.unbind(1):
        h, gates = cell(step, h, c)
        c = gates.c
        seen.append((h, *gates))
    return h, c, *(torch.stack(steps, dim=1) for steps in zip(*seen, strict=True))


def _scan(cell: LSTMCell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """As `_loop`, for a number of steps that is not known when the graph is drawn."""

    def step(states: _Tensors, x: Tensor) -> tuple[_Tensors, _Tensors]:
        h, gates = cell(x, *states)
        # What is carried on and what is shown may not be one tensor.
        return (h, gates.c), (h.clone(), *gates[:-1], gates.c.clone())

    run: Callable[..., tuple[_Tensors, _Tensors]] = scan
    after, seen = run(step, (h, c), x.transpose(0, 1))
    return *after, *(steps.transpose(0, 1) for steps in seen)
