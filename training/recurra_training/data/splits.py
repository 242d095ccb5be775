"""Deals recordings out: to learn from, to choose by, to judge by."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from recurra_training.data.recording import Recording, Split
from recurra_training.errors import TaskError

_SHARE: Final = 0.2
"""Of the groups that a network is judged by, and of those that it is chosen by."""


def split_by_group(recordings: Sequence[Recording], fold: int = 0) -> Split:
    """Deal whole groups out at random: a fifth of them, at least one, for validation and as many for the test.

    Each fold judges by the groups that the one before has chosen by, so with 10 groups, 5 folds judge by all.

    Raises:
        TaskError: There are fewer than three groups.
    """
    groups = sorted({recording.group for recording in recordings})
    if len(groups) < 3:
        raise TaskError(f"a split needs recordings of at least 3 groups; there are {len(groups)}")
    share = max(1, round(_SHARE * len(groups)))
    dealt = np.roll(np.random.default_rng(0).permutation(groups), -fold * share).tolist()
    return _split(recordings, dealt[:share], dealt[share : 2 * share])


def split_in_time(recordings: Sequence[Recording], fold: int = 0) -> Split:
    """Learn from the past, choose by what came after, judge by the last: recordings stand in the order of time."""
    del fold
    groups = list(dict.fromkeys(recording.group for recording in recordings))
    if len(groups) < 3:
        raise TaskError(f"a split in time needs at least 3 recordings; there are {len(groups)}")
    share = max(1, round(_SHARE * len(groups)))
    return _split(recordings, groups[-share:], groups[-2 * share : -share])


def _split(recordings: Sequence[Recording], test: list[str], validation: list[str]) -> Split:
    tested, chosen_by = set(test), set(validation)
    parts: dict[str, list[Recording]] = {"train": [], "validation": [], "test": []}
    for recording in recordings:
        name = "test" if recording.group in tested else "validation" if recording.group in chosen_by else "train"
        parts[name].append(recording)
    return Split(**{name: tuple(part) for name, part in parts.items()})
