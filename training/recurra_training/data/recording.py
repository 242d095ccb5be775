"""Sequences to learn from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Readings = NDArray[np.float32] | NDArray[np.int64]
Targets = NDArray[np.int64] | NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class Recording:
    """One sequence of T steps.

    `x` `[T, *dims]` holds raw readings in the units of the task's input, or the indices of tokens `[T]`. `target` is
    what should be answered at each step: class indices `[T]`, or values `[T, *dims]`. `asked` `[T]` says at which
    steps an answer is asked for; None: at all. Recordings with one `group` (a person, a machine) are alike in more
    than what is to be learnt, and so never stand on two sides of a split.
    """

    name: str
    group: str
    x: Readings
    target: Targets
    asked: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Split:
    """Recordings to learn from, to choose by, and to judge by at the end; no group stands in two of them."""

    train: tuple[Recording, ...]
    validation: tuple[Recording, ...]
    test: tuple[Recording, ...]
