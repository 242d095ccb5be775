"""What is to be learnt: recordings of several sequences, and what their numbers mean."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recurra_training.errors import TaskError
from recurra_training.signature import TensorSpec

Readings = NDArray[np.float32]
Targets = NDArray[np.int64] | NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class Recording:
    """One sequence of T steps.

    `x` `[T, *dims]` holds raw readings in the units of the task's input. `target` is what should be answered at each
    step: class indices `[T]`, or values `[T, *dims]`. Recordings with one `group` (a person, a machine) are alike in
    more than what is to be learnt, and so never stand on two sides of a split.
    """

    name: str
    group: str
    x: Readings
    target: Targets


@dataclass(frozen=True, eq=False, slots=True)
class Split:
    """Recordings to learn from, to choose by, and to judge by at the end; no group stands in two of them."""

    train: tuple[Recording, ...]
    validation: tuple[Recording, ...]
    test: tuple[Recording, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Task:
    """A task: its recordings, its input and its output.

    An output of kind `probability` has one label for each class and is learnt by cross-entropy; one of kind `value`
    is learnt by squared error.
    """

    name: str
    description: str
    input: TensorSpec
    output: TensorSpec
    step_seconds: float
    recordings: tuple[Recording, ...]

    def split(self) -> Split:
        """The task's own split: the same in every run, whatever the seed of the training."""
        return split_by_group(self.recordings)


def split_by_group(
    recordings: Sequence[Recording], *, validation: float = 0.2, test: float = 0.2, seed: int = 0
) -> Split:
    """Deal whole groups out at random: `validation` and `test` are shares of the groups, rounded, at least one each.

    Raises:
        TaskError: There are fewer than three groups.
    """
    groups = sorted({recording.group for recording in recordings})
    if len(groups) < 3:
        raise TaskError(f"a split needs recordings of at least 3 groups; there are {len(groups)}")
    dealt = np.random.default_rng(seed).permutation(groups).tolist()
    n_test = max(1, round(test * len(groups)))
    n_validation = max(1, round(validation * len(groups)))

    def of(chosen: list[str]) -> tuple[Recording, ...]:
        return tuple(recording for recording in recordings if recording.group in chosen)

    return Split(
        train=of(dealt[n_test + n_validation :]),
        validation=of(dealt[n_test : n_test + n_validation]),
        test=of(dealt[:n_test]),
    )
