"""What is to be learnt, what its numbers mean, and how it is learnt and judged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from recurra_training.cells import Cell
from recurra_training.data.recording import Recording, Split
from recurra_training.data.splits import split_by_group
from recurra_training.settings import Settings
from recurra_training.signature import Feedback, TensorSpec


class Measure(NamedTuple):
    """The figure that a task is judged by: one of those that `metrics.Tally` gives."""

    name: str
    best: Literal["max", "min"]
    title: str
    """For people: what the figure is."""
    unit: str = ""

    def text(self, value: float) -> str:
        """The figure for people, without its unit unless that is a per cent."""
        return f"{value:.1%}" if self.unit == "%" else f"{value:.4g}"

    def better(self, one: float, other: float) -> bool:
        """Whether `one` is the better figure."""
        return one > other if self.best == "max" else one < other


ACCURACY: Final = Measure("accuracy", "max", "steps that are right", "%")
RMSE: Final = Measure("rmse", "min", "root mean squared error")

Baselines = Callable[[Split], Mapping[str, float]]
"""What answering without a network is worth, in the task's measure, on the test recordings; learnt from the others."""


@dataclass(frozen=True, eq=False, slots=True)
class Task:
    """A task: its recordings, its input and its output, and how it is learnt and judged.

    An output of kind `probability` or `logit` has one label for each class and is learnt by cross-entropy; one of
    kind `value` is learnt by squared error. An input of integers without dims is a token: its labels name the tokens.
    """

    name: str
    description: str
    input: TensorSpec
    output: TensorSpec
    step_seconds: float | None
    recordings: tuple[Recording, ...]
    measure: Measure = ACCURACY
    settings: Settings = field(default_factory=Settings)
    """What suits the task; `recurra train` changes what its flags say."""
    cells: tuple[Cell, ...] = ("ffnn", "lstm")
    """What is trained if nothing else is asked for: a baseline, and what beats it."""
    deal: Callable[[Sequence[Recording], int], Split] = split_by_group
    """How the recordings are split, by the number of the fold."""
    folds: int = 1
    """How many splits there are, each with other recordings to judge by."""
    baselines: Baselines | None = None
    """None: the best constant answer."""
    goal: float | None = None
    """The figure on the validation recordings at which more training is a waste."""
    feedback: Feedback | None = None
    """How an output becomes the next input, for `Generate`."""
    source: Mapping[str, object] | None = None
    """Where one's own data were read from, for the configuration of its runs."""
    source_tokens: int = 0
    """How many of the tokens, the first ones, are of a sequence that is read before another one is written."""

    def split(self, fold: int = 0) -> Split:
        """One of the task's own splits: the same in every run, whatever the seed of the training."""
        return self.deal(self.recordings, fold % self.folds)

    @property
    def is_classes(self) -> bool:
        """Whether an answer is one of several classes, and not a value."""
        return self.output.kind != "value"

    @property
    def tokens(self) -> int:
        """How many tokens the input tells apart; 0: it is readings."""
        return 0 if self.input.dims else len(self.input.labels)
