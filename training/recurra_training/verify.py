"""Proves that an exported model answers alike however its steps come, and as the network that it was exported from."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from recurra_verification import ROWS, TOLERANCE, Array, Check, Played, allowing, compare, difference, wrong
from torch import Tensor, nn

from recurra_training.contract import read_model
from recurra_training.errors import VerificationError
from recurra_training.export import ExportedNetwork
from recurra_training.runner import ModelRunner
from recurra_training.signature import Signature

__all__ = ["TOLERANCE", "Check", "DifferenceError", "verify"]

_OTHER_RUNTIME: Final = 1e-4
"""The tolerance between two runtimes: they round sigmoid and tanh differently, and a memory adds it up."""


class DifferenceError(VerificationError):
    """A model answers differently; `checks` holds all that was compared."""

    def __init__(self, checks: list[Check]) -> None:
        super().__init__(str(wrong(checks)))
        self.checks = checks


def verify(
    path: Path,
    network: nn.Module | None = None,
    *,
    sequences: Sequence[Array] = (),
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> list[Check]:
    """Verify a model file.

    Args:
        path: The file. Nothing is known of it but what it says of itself.
        network: The network that it was exported from, to be compared as well.
        sequences: Real inputs to run beside random ones, each `[T, *dims]`; for a model of one input.
        tolerance: Largest difference allowed.
        seed: Of the random inputs, cuts and batch mates.

    Raises:
        SignatureError: The signature does not fit the graph.
        VerificationError: The model fails or answers in a shape of its own.
        DifferenceError: It answers differently; the message says what differs, how, and by how much.
    """
    signature = read_model(path)
    # An integer is the index of a class: of those with labels, or of those that the output tells apart.
    classes = (signature.outputs[0].dims or (2,))[-1]
    rng = np.random.default_rng(seed)
    checks, inputs, whole = compare(
        ModelRunner(path, signature),
        signature.inputs,
        rng,
        chunks=signature.has_time,
        classes=classes,
        sequences=sequences,
    )
    if network is not None:
        in_torch = difference("in PyTorch", whole, _play_torch(network, signature, inputs))
        checks.append(replace(in_torch, tolerance=_OTHER_RUNTIME))
    checks = allowing(checks, tolerance)
    if wrong(checks) is not None:
        raise DifferenceError(checks)
    return checks


@torch.no_grad()
def _play_torch(network: nn.Module, signature: Signature, inputs: dict[str, Array]) -> Played:
    initial_states: Callable[[int], tuple[Tensor, ...]] = network.initial_states  # type: ignore[assignment]
    (x,) = (torch.from_numpy(inputs[spec.name]) for spec in signature.inputs)
    answers = ExportedNetwork(network, signature)(x, *initial_states(ROWS))
    tensors = dict(zip(signature.output_shapes(), answers, strict=True))
    return Played(
        {spec.name: tensors[spec.name].numpy() for spec in signature.outputs},
        {
            spec.output_name: np.moveaxis(tensors[spec.output_name].numpy(), spec.batch_axis, 0)
            for spec in signature.states
        },
    )
