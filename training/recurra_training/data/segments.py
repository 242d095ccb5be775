"""Cuts recordings into the segments that truncated back-propagation through time goes back over.

A batch holds a row for each recording. It comes as a run of segments of equal length, and a row goes on in the next
segment where it ended in the one before: so states can be carried along, row by row.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from recurra_training.data.recording import Recording, Split

_ROWS: Final = 512
"""Recordings of validation that are run at a time."""


class Segment(NamedTuple):
    """Some steps of B recordings: `x` `[B, T, *dims]`, `target` `[B, T, ...]`, `mask` `[B, T]`.

    `mask` is False where no answer is asked for, and past the end of a recording; there, `x` and `target` are zero.
    `first`: the recordings begin here.
    """

    x: Tensor
    target: Tensor
    mask: Tensor
    first: bool


def pad(recordings: Sequence[Recording]) -> Segment:
    """Whole recordings as one segment, as long as the longest."""
    longest = max(len(recording.x) for recording in recordings)
    example = recordings[0]
    x = np.zeros((len(recordings), longest, *example.x.shape[1:]), example.x.dtype)
    target = np.zeros((len(recordings), longest, *example.target.shape[1:]), example.target.dtype)
    mask = np.zeros((len(recordings), longest), np.bool_)
    for row, recording in enumerate(recordings):
        steps = len(recording.x)
        x[row, :steps], target[row, :steps] = recording.x, recording.target
        mask[row, :steps] = True if recording.asked is None else recording.asked
    return Segment(torch.from_numpy(x), torch.from_numpy(target), torch.from_numpy(mask), first=True)


class Segments:
    """One pass over the recordings: batches in random order, each as its segments in order."""

    def __init__(
        self,
        recordings: Sequence[Recording],
        *,
        batch_size: int,
        steps: int,
        rng: np.random.Generator | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Deal the recordings out.

        Args:
            recordings: What to pass over.
            batch_size: Recordings in a batch.
            steps: Length of a segment.
            rng: Shuffles the recordings; None keeps their order.
            part: Which part of how many: several processes share the rows of every batch. Each has as many segments,
                so that none waits for another in vain.
        """
        order = np.arange(len(recordings)) if rng is None else rng.permutation(len(recordings))
        self._batches = [
            [recordings[index] for index in order[start : start + batch_size]]
            for start in range(0, len(recordings), batch_size)
        ]
        self._steps = steps
        self._part = part

    def __len__(self) -> int:
        """The number of segments."""
        return sum(math.ceil(max(len(row.x) for row in batch) / self._steps) for batch in self._batches)

    def __iter__(self) -> Iterator[Segment]:
        """The segments."""
        for batch in self._batches:
            whole = pad(batch)
            part, parts = self._part
            if parts > 1:
                rows = [row % len(batch) for row in range(part, max(len(batch), part + 1), parts)]
                whole = Segment(whole.x[rows], whole.target[rows], whole.mask[rows], first=True)
            for start in range(0, whole.x.shape[1], self._steps):
                cut = slice(start, start + self._steps)
                yield Segment(whole.x[:, cut], whole.target[:, cut], whole.mask[:, cut], first=start == 0)


class DataModule(pl.LightningDataModule):
    """Feeds a split to any Lightning trainer: training in segments, validation whole.

    The order depends on nothing but `seed` and the number of the epoch, so a run that is taken up again goes on as if
    it had not been interrupted.
    """

    def __init__(self, split: Split, *, batch_size: int, steps: int, seed: int) -> None:
        super().__init__()
        self._split = split
        self._batch_size = batch_size
        self._steps = steps
        self._seed = seed

    def train_dataloader(self) -> Segments:
        """The training recordings, shuffled anew for the epoch that begins."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        part = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        rng = np.random.default_rng([self._seed, epoch])
        return Segments(self._split.train, batch_size=self._batch_size, steps=self._steps, rng=rng, part=part)

    def val_dataloader(self) -> Segments:
        """The validation recordings, each whole."""
        recordings = self._split.validation
        longest = max(len(recording.x) for recording in recordings)
        return Segments(recordings, batch_size=min(len(recordings), _ROWS), steps=longest)
