"""How recurrent weights begin: what decides whether a gradient lives long enough to teach anything."""

import math

import torch
from torch import nn

from recurra_training.settings import Start


@torch.no_grad()
def start_from(recurrence: nn.RNNBase, start: Start) -> None:
    """Set the matrices from h to h.

    orthogonal: they neither stretch nor shrink what goes through them (Saxe et al., 2014, arXiv:1312.6120).
    identity: with ReLU, h keeps what it holds until something is added (Le, Jaitly and Hinton, 2015, arXiv:1504.00941).
    """
    for name, weight in recurrence.named_parameters():
        if name.startswith("weight_hh") and start != "default":
            for block in torch.split(weight, recurrence.hidden_size):
                (nn.init.orthogonal_ if start == "orthogonal" else nn.init.eye_)(block)
        if name.startswith("bias") and start == "identity":
            weight.zero_()


@torch.no_grad()
def remember(recurrence: nn.RNNBase, steps: int) -> None:
    """Let gates begin so that each unit remembers for some 1 to `steps` steps: chrono initialisation.

    Tallec and Ollivier, 2018, arXiv:1804.11188: the forget gate's bias is log u, u uniform in 1 ... steps - 1, and the
    input gate's the opposite. A GRU's update gate, by which PyTorch keeps what was there, takes the place of both.
    """
    hidden = recurrence.hidden_size
    for layer in range(recurrence.num_layers):
        bias = getattr(recurrence, f"bias_ih_l{layer}")
        keep = torch.empty(hidden).uniform_(1, max(steps - 1, 1 + math.exp(-1))).log()
        if isinstance(recurrence, nn.LSTM):  # the gates stand in the order i, f, g, o
            bias[:hidden], bias[hidden : 2 * hidden] = -keep, keep
        elif isinstance(recurrence, nn.GRU):  # r, z, n
            bias[hidden : 2 * hidden] = keep
