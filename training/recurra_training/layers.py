"""The first and last layers of a network: between what a caller sends and reads, and what a network is good with."""

import torch
from torch import Tensor, nn


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


class Rescale(nn.Module):
    """Takes answers of mean 0 and standard deviation 1 to the values of the task: the other way about."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("deviation", torch.ones(outputs))

    @torch.no_grad()
    def fit(self, targets: Tensor) -> None:
        """Take mean and standard deviation from `targets` `[steps, outputs]`."""
        deviation = targets.double().std(0)
        self.mean.copy_(targets.double().mean(0))
        self.deviation.copy_(torch.where(deviation > 0, deviation, 1.0))

    def forward(self, y: Tensor) -> Tensor:
        """Rescale `y`."""
        return y * self.deviation + self.mean


class InputNoise(nn.Module):
    """Adds Gaussian noise in training, in units of the standard deviation; a network then trusts no single reading."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        """Add the noise."""
        return x + self.deviation * torch.randn_like(x) if self.training and self.deviation else x
