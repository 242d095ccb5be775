"""What is run: plans of calls, and what comes of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_MOST_BYTES: Final = 256 << 20


class Call(NamedTuple):
    """One model call: the next `steps` steps of these rows."""

    rows: list[int]
    steps: int


class Played(NamedTuple):
    """The outputs of all rows by name, each `[R, T, *dims]`, and their states at the end, each `[R, *dims]`."""

    outputs: dict[str, Array]
    states: dict[str, Array]


class Player(Protocol):
    """Runs a model by a plan."""

    def play(self, inputs: Mapping[str, Array], calls: Iterable[Call]) -> Played:
        """Run rows of T steps by a plan of calls; each row's states are carried from one of its calls to its next.

        Args:
            inputs: By name, `[R, T, *dims]`.
            calls: The plan. Together they cover every step of every row.

        Raises:
            Exception: A call fails.
        """
        ...


class Input(Protocol):
    """What must be known of an input to make one up."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def dtype(self) -> str:
        """Its element type, as NumPy calls it."""
        ...

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape of one step of one row."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its entries; of an integer without dims, of its classes."""
        ...


def random_rows(
    specs: Sequence[Input], rows: int, steps: int, rng: np.random.Generator, *, classes: int
) -> dict[str, Array]:
    """Random inputs, each `[R, T, *dims]`; an integer is the index of one of its labels, or below `classes`."""

    def one(spec: Input) -> Array:
        shape, dtype = (rows, steps, *spec.dims), np.dtype(spec.dtype)
        if dtype.kind == "f":
            return rng.standard_normal(shape).astype(dtype)
        return rng.integers(2 if dtype.kind == "b" else len(spec.labels) or classes, size=shape).astype(dtype)

    return {spec.name: one(spec) for spec in specs}


def steps_that_fit(specs: Sequence[Input], rows: int, most: int) -> int:
    """How many steps of so many rows are held without wasting memory: at least 2."""
    row = sum(int(np.prod(spec.dims)) * np.dtype(spec.dtype).itemsize for spec in specs)
    return max(2, min(most, _MOST_BYTES // (rows * max(1, row))))


def cuts(steps: int, longest: int, rng: np.random.Generator) -> list[int]:
    """Random lengths that add up to `steps`."""
    lengths: list[int] = []
    while (left := steps - sum(lengths)) > 0:
        lengths.append(int(rng.integers(1, min(left, longest) + 1)))
    return lengths


def schedule(rows: int, steps: int, longest: int, rng: np.random.Generator) -> list[Call]:
    """Random batches of random rows, each row where it happens to stand, until all are at their end."""
    left = np.full(rows, steps)
    calls: list[Call] = []
    while left.any():
        waiting = np.flatnonzero(left)
        chosen = rng.permutation(waiting)[: rng.integers(1, len(waiting) + 1)]
        length = int(rng.integers(1, min(longest, left[chosen].min()) + 1))
        left[chosen] -= length
        calls.append(Call(chosen.tolist(), length))
    return calls
