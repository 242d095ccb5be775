"""How much the answer at the last step depends on each step before it: the gradient against the lag."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recurra_training.models import Network


def gradient_by_lag(network: Network, x: Tensor, *, seed: int = 0) -> NDArray[np.float64]:
    """The norm of the gradient of the last answer with respect to what the network reads at each step before it.

    The answer is weighed with a random direction of length 1, so that the norm is that of a typical answer.

    Args:
        network: The network; it is run in evaluation mode and left in it.
        x: `[B, T, inputs]`, or tokens `[B, T]`; all rows of full length.
        seed: Of the directions.

    Returns:
        `[T]`, the mean over the rows: first at lag 0, the last step itself, last at the first step.
    """
    network.eval()
    read: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, features: Tensor) -> None:
        features.retain_grad()
        read.append(features)

    handle = network.normalise.register_forward_hook(keep)
    try:
        y, *_ = network(x.clone().requires_grad_() if x.is_floating_point() else x, *network.initial_states(len(x)))
    finally:
        handle.remove()
    direction = torch.randn(y[:, -1].shape, generator=torch.Generator().manual_seed(seed))
    (y[:, -1] * direction / direction.norm(dim=-1, keepdim=True)).sum().backward()
    network.zero_grad()
    gradient = read[0].grad
    assert gradient is not None  # noqa: S101  # it was retained
    norms: NDArray[np.float64] = gradient.double().norm(dim=-1).mean(0).flip(0).numpy()
    return norms
