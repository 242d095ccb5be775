"""Proves that a model answers alike however its steps come: one by one, in chunks, whole; alone or in company.

That is what a server relies on: it cuts sequences and batches sessions as load has it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from recurra_training.contract import read_model
from recurra_training.errors import VerificationError
from recurra_training.export import ExportedNetwork
from recurra_training.runner import Array, Call, ModelRunner, Played
from recurra_training.signature import Signature, TensorSpec

TOLERANCE: Final = 1e-5
"""Largest difference allowed if nothing else is said: absolute for values up to 1, relative for larger ones."""

_OTHER_RUNTIME: Final = 1e-4
"""The same between two runtimes: they round sigmoid and tanh differently, and a memory adds it up over the steps."""
_ROWS: Final = 7
_STEPS: Final = 40
_LONGEST_CHUNK: Final = 12
_EVERY_ROW: Final = list(range(_ROWS))


@dataclass(frozen=True, slots=True)
class Check:
    """A way to run the sequences, and how its answers differ from those of whole sequences run alone."""

    name: str
    difference: float
    """The largest, NaN and infinity counting as infinite."""
    tensor: str
    """Where it is."""
    tolerance: float = 0.0
    """What is allowed."""

    @property
    def passed(self) -> bool:
        """Whether it is within the tolerance."""
        return self.difference <= self.tolerance


class DifferenceError(VerificationError):
    """A model answers differently; `checks` holds all that was compared."""

    def __init__(self, checks: list[Check]) -> None:
        worst = max((check for check in checks if not check.passed), key=lambda check: check.difference)
        much = f"differs by {worst.difference:.2g}; {worst.tolerance:g} is allowed"
        super().__init__(f"{worst.tensor} {worst.name} {much if np.isfinite(worst.difference) else 'is not finite'}")
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
    rng = np.random.default_rng(seed)
    inputs = _inputs(signature, sequences, rng)
    found = _compare(ModelRunner(path, signature), signature, inputs, network, rng)
    checks = [replace(check, tolerance=max(tolerance, check.tolerance)) for check in found]
    if not all(check.passed for check in checks):
        raise DifferenceError(checks)
    return checks


def _compare(
    runner: ModelRunner,
    signature: Signature,
    inputs: dict[str, Array],
    network: nn.Module | None,
    rng: np.random.Generator,
) -> list[Check]:
    longest = _LONGEST_CHUNK if signature.has_time else 1
    lengths = [_STEPS] if signature.has_time else [1] * _STEPS
    together = [Call(_EVERY_ROW, length) for length in lengths]
    whole = runner.play(inputs, [Call([row], length) for row in _EVERY_ROW for length in lengths])

    def check(name: str, calls: list[Call]) -> Check:
        return _check(name, whole, runner.play(inputs, calls))

    checks = [
        _check("as whole sequences", whole, whole),  # is it finite?
        check("step by step", [Call([row], 1) for row in _EVERY_ROW for _ in range(_STEPS)]),
        check("in random chunks", [Call([row], length) for row in _EVERY_ROW for length in _cuts(longest, rng)]),
        check("in one batch", together),
        check("in random chunks and batches", _schedule(longest, rng)),
    ]
    row = int(rng.integers(_ROWS))
    mixed = _strange(signature, rng)
    for name, x in mixed.items():
        x[row] = inputs[name][row]
    checks.append(_check("beside other mates", whole, runner.play(mixed, together), row=row))
    known = _STEPS // 2
    mixed = _strange(signature, rng)
    for name, x in mixed.items():
        x[:, :known] = inputs[name][:, :known]
    checks.append(_check("before another future", whole, runner.play(mixed, together), steps=known))
    if network is not None:
        in_torch = _check("in PyTorch", whole, _play_torch(network, signature, inputs))
        checks.append(replace(in_torch, tolerance=_OTHER_RUNTIME))
    return checks


def _check(name: str, whole: Played, other: Played, *, row: int | None = None, steps: int | None = None) -> Check:
    """Compare outputs and states at the end; only those of `row`, or only outputs, those of the first `steps`."""
    rows = slice(None) if row is None else slice(row, row + 1)
    tensors = {
        output: (want[rows, :steps], other.outputs[output][rows, :steps]) for output, want in whole.outputs.items()
    }
    if steps is None:
        tensors |= {state: (want[rows], other.states[state][rows]) for state, want in whole.states.items()}
    differences = {tensor: _difference(*pair) for tensor, pair in tensors.items()}
    worst = max(differences, key=differences.__getitem__)
    return Check(name, differences[worst], worst)


def _difference(want: Array, got: Array) -> float:
    want, got = want.astype(np.float64), got.astype(np.float64)
    if not (np.isfinite(want).all() and np.isfinite(got).all()):
        return np.inf
    return float(np.max(np.abs(got - want) / np.maximum(1, np.abs(want)), initial=0))


def _inputs(signature: Signature, sequences: Sequence[Array], rng: np.random.Generator) -> dict[str, Array]:
    """Rows for each input, `[R, T, *dims]`: random ones, and in place of some the real ones that are long enough."""
    inputs = {spec.name: _random(spec, signature, rng) for spec in signature.inputs}
    rows = inputs[signature.inputs[0].name]
    for row, sequence in enumerate([sequence for sequence in sequences if len(sequence) >= _STEPS][: _ROWS // 2]):
        rows[row] = sequence[:_STEPS]
    return inputs


def _strange(signature: Signature, rng: np.random.Generator) -> dict[str, Array]:
    """Other inputs, and larger ones: what depends on the largest value of a batch shows."""
    strange = {spec.name: _random(spec, signature, rng) for spec in signature.inputs}
    return {name: 10 * x if x.dtype.kind == "f" else x for name, x in strange.items()}


def _random(spec: TensorSpec, signature: Signature, rng: np.random.Generator) -> Array:
    shape = (_ROWS, _STEPS, *spec.dims)
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    # An integer is the index of a class: of those with labels, or of those that the output tells apart.
    classes = len(spec.labels) or (signature.outputs[0].dims or (2,))[-1]
    return rng.integers(2 if dtype.kind == "b" else classes, size=shape).astype(dtype)


def _cuts(longest: int, rng: np.random.Generator) -> list[int]:
    """Random lengths that add up to the length of a sequence."""
    lengths: list[int] = []
    while (left := _STEPS - sum(lengths)) > 0:
        lengths.append(int(rng.integers(1, min(left, longest) + 1)))
    return lengths


def _schedule(longest: int, rng: np.random.Generator) -> list[Call]:
    """Random batches of random rows, each row where it happens to stand, until all are at their end."""
    left = np.full(_ROWS, _STEPS)
    calls: list[Call] = []
    while left.any():
        waiting = np.flatnonzero(left)
        rows = rng.permutation(waiting)[: rng.integers(1, len(waiting) + 1)]
        length = int(rng.integers(1, min(longest, left[rows].min()) + 1))
        left[rows] -= length
        calls.append(Call(rows.tolist(), length))
    return calls


@torch.no_grad()
def _play_torch(network: nn.Module, signature: Signature, inputs: dict[str, Array]) -> Played:
    initial_states: Callable[[int], tuple[Tensor, ...]] = network.initial_states  # type: ignore[assignment]
    (x,) = (torch.from_numpy(inputs[spec.name]) for spec in signature.inputs)
    answers = ExportedNetwork(network, signature)(x, *initial_states(_ROWS))
    tensors = dict(zip(signature.output_shapes(), answers, strict=True))
    return Played(
        {spec.name: tensors[spec.name].numpy() for spec in signature.outputs},
        {
            spec.output_name: np.moveaxis(tensors[spec.output_name].numpy(), spec.batch_axis, 0)
            for spec in signature.states
        },
    )
