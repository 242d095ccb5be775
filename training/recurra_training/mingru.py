"""A network of one's own, as an example: the minimal gated recurrent unit.

Feng et al., 2024, "Were RNNs all we needed?", arXiv:2410.01201:

    z  = sigmoid(W_z x)          how much is new
    h' = (1 - z) h + z W_h x     what is remembered

Neither z nor what is written looks at h, so nothing but the last line has to wait for the step before.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan  # becomes ONNX's Scan; PyTorch has no public name for it yet

from recurra_training.models import Network


class MinGRU(Network):
    """One layer of it, with a linear layer behind it. Its state h is of shape `[B, hidden]`."""

    state_names = ("h",)

    def __init__(self, inputs: int, outputs: int, *, hidden: int = 64, values: bool = False) -> None:
        super().__init__(inputs, outputs, values=values)
        self.hidden = hidden
        self.gate = nn.Linear(inputs, hidden)
        self.candidate = nn.Linear(inputs, hidden)
        self.head = nn.Linear(hidden, outputs)

    def initial_states(self, batch: int) -> tuple[Tensor, ...]:
        """Zeros."""
        return (self.head.weight.new_zeros(batch, self.hidden),)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """`x` `[B, T, inputs]` and the state before it -> y `[B, T, outputs]`, the state after it."""
        features = self.read(x)
        z = torch.sigmoid(self.gate(features))
        over_time = _scan if torch.compiler.is_exporting() else _loop
        h, states = over_time(h, 1 - z, z * self.candidate(features))
        return self.rescale(self.head(states)), h


def _loop(h: Tensor, kept: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
    """H after the last step, and after each, `[B, T, hidden]`."""
    states = []
    for keep, write in zip(kept.unbind(1), written.unbind(1), strict=True):
        h = keep * h + write
        states.append(h)
    return h, torch.stack(states, dim=1)


def _scan(h: Tensor, kept: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
    """As `_loop`, for a number of steps that is not known when the graph is drawn."""

    def step(h: Tensor, now: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        keep, write = now
        h = keep * h + write
        return h, h.clone()  # what is carried on and what is shown may not be one tensor

    run: Callable[..., tuple[Tensor, Tensor]] = scan
    after, states = run(step, h, (kept.transpose(0, 1), written.transpose(0, 1)))
    return after, states.transpose(0, 1)
