"""The ways to run sequences that must not make a difference."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from recurra_verification.plays import (
    Array,
    Call,
    Input,
    Played,
    Player,
    cuts,
    random_rows,
    schedule,
    steps_that_fit,
)

TOLERANCE: Final = 1e-5
"""Largest difference allowed if nothing else is said: absolute for values up to 1, relative for larger ones."""

ROWS: Final = 7
STEPS: Final = 40
_LONGEST_CHUNK: Final = 12

About = Literal["values", "steps", "company", "future", "outputs"]


@dataclass(frozen=True, slots=True)
class Check:
    """A way to run the sequences, and how its answers differ from those of whole sequences run alone."""

    name: str
    difference: float
    """The largest, NaN and infinity counting as infinite."""
    tensor: str
    """Where it is."""
    about: About = "values"
    """What would be wrong with the model: its values, how it goes on from step to step, that rows are not on their own,
    that it looks ahead, or that it depends on which outputs are asked for."""
    tolerance: float = 0.0
    """What is allowed."""

    @property
    def passed(self) -> bool:
        """Whether it is within the tolerance."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        """What differs, how, and by how much."""
        much = f"differs by {self.difference:.2g}; {self.tolerance:g} is allowed"
        return f"{self.tensor} {self.name} {much if np.isfinite(self.difference) else 'is not finite'}"


def wrong(checks: Sequence[Check]) -> Check | None:
    """The worst of those that have not passed; None where all have."""
    return max((check for check in checks if not check.passed), key=lambda check: check.difference, default=None)


def compare(
    player: Player,
    specs: Sequence[Input],
    rng: np.random.Generator,
    *,
    chunks: bool,
    batches: bool = True,
    classes: int = 2,
    sequences: Sequence[Array] = (),
    without_optional: Player | None = None,
) -> tuple[list[Check], dict[str, Array], Played]:
    """Run random sequences whole and alone, then in all the ways that a server may run them.

    Args:
        player: Runs the model.
        specs: The inputs.
        rng: Of inputs, cuts and batch-mates.
        chunks: Whether several steps go into one call.
        batches: Whether several rows do.
        classes: What an integer input without labels is below.
        sequences: Real inputs that take the place of some random ones, each `[T, *dims]`; for a model of one input.
        without_optional: Runs what of the model is run where nobody asks for its optional outputs; None if that is all.

    Returns:
        The checks, the first being whether whole sequences are finite; the inputs; the whole sequences.

    Raises:
        Exception: The player's; the model fails.
    """
    steps = steps_that_fit(specs, ROWS, STEPS)
    inputs = _inputs(specs, steps, sequences, rng, classes)
    longest, lengths = (_LONGEST_CHUNK, [steps]) if chunks else (1, [1] * steps)
    every = list(range(ROWS))
    alone = [Call([row], length) for row in every for length in lengths]
    together = [Call(every, length) for length in lengths]
    whole = player.play(inputs, alone)

    def check(name: str, about: About, calls: list[Call]) -> Check:
        return difference(name, whole, player.play(inputs, calls), about)

    one_by_one = [Call([row], 1) for row in every for _ in range(steps)]
    checks = [
        difference("as whole sequences", whole, whole),  # is it finite?
        check("step by step", "steps", one_by_one),
    ]
    if chunks:
        cut = [Call([row], length) for row in every for length in cuts(steps, longest, rng)]
        checks.append(check("in random chunks", "steps", cut))
    if batches:
        checks.append(check("in one batch", "company", together))
        name = "in random chunks and batches" if chunks else "in random batches"
        checks.append(check(name, "company", schedule(ROWS, steps, longest, rng)))
        row, mixed = int(rng.integers(ROWS)), _strange(specs, steps, rng, classes)
        for name, x in mixed.items():
            x[row] = inputs[name][row]
        checks.append(difference("beside other mates", whole, player.play(mixed, together), "company", row=row))
    known, mixed = steps // 2, _strange(specs, steps, rng, classes)
    for name, x in mixed.items():
        x[:, :known] = inputs[name][:, :known]
    checks.append(difference("before another future", whole, player.play(mixed, alone), "future", steps=known))
    if without_optional is not None:
        asked_less = without_optional.play(inputs, one_by_one)
        checks.append(difference("without optional outputs", whole, asked_less, "outputs"))
    return checks, inputs, whole


def difference(
    name: str,
    whole: Played,
    other: Played,
    about: About = "values",
    *,
    row: int | None = None,
    steps: int | None = None,
) -> Check:
    """Compare what outputs `other` has, and states at the end; only of `row`, or only outputs, of the first `steps`."""
    rows = slice(None) if row is None else slice(row, row + 1)
    tensors = {
        output: (whole.outputs[output][rows, :steps], got[rows, :steps]) for output, got in other.outputs.items()
    }
    if steps is None:
        tensors |= {state: (want[rows], other.states[state][rows]) for state, want in whole.states.items()}
    differences = {tensor: _apart(*pair) for tensor, pair in tensors.items()}
    worst = max(differences, key=differences.__getitem__)
    return Check(name, differences[worst], worst, about)


def allowing(checks: Sequence[Check], tolerance: float) -> list[Check]:
    """Checks with a tolerance, where they have no larger one already."""
    return [replace(check, tolerance=max(tolerance, check.tolerance)) for check in checks]


def _apart(want: Array, got: Array) -> float:
    want, got = want.astype(np.float64), got.astype(np.float64)
    if not (np.isfinite(want).all() and np.isfinite(got).all()):
        return np.inf
    return float(np.max(np.abs(got - want) / np.maximum(1, np.abs(want)), initial=0))


def _inputs(
    specs: Sequence[Input], steps: int, sequences: Sequence[Array], rng: np.random.Generator, classes: int
) -> dict[str, Array]:
    """Rows for each input: random ones, and in place of some the real ones that are long enough."""
    inputs = random_rows(specs, ROWS, steps, rng, classes=classes)
    rows = inputs[specs[0].name]
    for row, sequence in enumerate([sequence for sequence in sequences if len(sequence) >= steps][: ROWS // 2]):
        rows[row] = sequence[:steps]
    return inputs


def _strange(specs: Sequence[Input], steps: int, rng: np.random.Generator, classes: int) -> dict[str, Array]:
    """Other inputs, and larger ones: what depends on the largest value of a batch shows."""
    strange = random_rows(specs, ROWS, steps, rng, classes=classes)
    return {name: 10 * x if x.dtype.kind == "f" else x for name, x in strange.items()}
