"""Trainings beside one another: several kinds of network, several seeds, and what they must beat."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console

from recurra_training import team
from recurra_training.cells import Cell
from recurra_training.data.held_out import write_recordings
from recurra_training.data.task import Measure, Task
from recurra_training.fit import Run, fit
from recurra_training.labels import LABELS, label
from recurra_training.settings import Settings

HELD_OUT: Final = "held_out"
_MOST_HELD_OUT: Final = 50
"""Recordings that are written for streaming."""
_BASELINE: Final = "ffnn"
_BASELINE_LAYERS: Final = 2
"""The least that the baseline has: two beat one, and a baseline should be as good as it gets."""


class Figure(NamedTuple):
    """A figure of several seeds."""

    name: str
    values: tuple[float, ...]
    trained: bool = True
    """Whether it is a network's. A baseline may be the same for all seeds, and then it is one figure."""

    @property
    def label(self) -> str:
        """The name for people."""
        return label(self.name)

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation over the seeds; 0 for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def differs(self) -> bool:
        """Whether it is a figure for each seed, and not one for all."""
        return len(self.values) > 1 and (self.trained or self.spread > 0)

    def text(self, measure: Measure) -> str:
        """Mean and standard deviation for people; only the mean where there are not several values."""
        deviation = measure.text(self.spread) if measure.unit == "%" else f"{self.spread:.2g}"
        return measure.text(self.mean) + (f" ± {deviation}" if self.differs else "")


@dataclass(frozen=True, slots=True)
class Experiment:
    """What was trained on a task: for each kind of network, a run for each seed."""

    task: Task
    runs: Mapping[Cell, Sequence[Run]]

    def baselines(self) -> list[Figure]:
        """What needs no network, judged on the same recordings."""
        some = next(iter(self.runs.values()))
        ending = f"_{self.task.measure.name}"
        parts = ("test", "validation", "train", *self.runs)
        names = [name.removesuffix(ending) for name in some[0].metrics if name.endswith(ending)]
        known = [name for name in names if name in LABELS and name not in parts]
        return [Figure(name, tuple(run.metrics[name + ending] for run in some), trained=False) for name in known]

    def figures(self) -> list[Figure]:
        """What the networks reach, in the task's measure on the test recordings."""
        figure = f"test_{self.task.measure.name}"
        return [Figure(cell, tuple(run.metrics[figure] for run in runs)) for cell, runs in self.runs.items()]

    def best(self) -> Run:
        """The run of the first seed that did best on the validation recordings."""
        figure = f"validation_{self.task.measure.name}"
        choose = max if self.task.measure.best == "max" else min
        return choose((runs[0] for runs in self.runs.values()), key=lambda run: run.metrics[figure])


def plan(task: Task, settings: Settings, cells: Sequence[Cell], seeds: int) -> dict[Cell, list[Settings]]:
    """The settings of every run. Each seed takes the next fold of the task, so that luck with people shows too.

    A feed-forward network gets at least two layers, which beat one: a baseline should be as good as it gets.
    """

    def of(cell: Cell, index: int) -> Settings:
        layers = max(settings.layers, _BASELINE_LAYERS) if cell == _BASELINE else settings.layers
        fold = (settings.fold + index) % task.folds
        return replace(settings, cell=cell, layers=layers, seed=settings.seed + index, fold=fold)

    return {cell: [of(cell, index) for index in range(seeds)] for cell in cells}


def run_experiment(
    task: Task,
    settings: Settings,
    runs: Path,
    console: Console,
    *,
    cells: Sequence[Cell] = (),
    seeds: int = 1,
    resume: bool = False,
) -> Experiment:
    """Train networks below `runs/<task>/`, with the same settings on the same splits.

    Some of the test recordings are written to `runs/<task>/held_out/`.

    Args:
        task: What to learn.
        settings: How; `cell` counts only where there are no `cells`.
        runs: Where the runs' folders are made.
        console: Where progress is shown.
        cells: The kinds of network; none: the one of the settings.
        seeds: Runs of each, with the seeds that follow that of the settings.
        resume: See `fit`.

    Raises:
        As `fit`.
    """
    planned = plan(task, settings, cells or (settings.cell,), seeds)
    done = {
        cell: [fit(task, one, run_folder(runs, task, one), console, resume=resume) for one in each]
        for cell, each in planned.items()
    }
    if team.is_first():
        write_recordings(task, task.split(settings.fold).test[:_MOST_HELD_OUT], runs / task.name / HELD_OUT)
    experiment = Experiment(task, done)
    _add_feed_forward(experiment)
    return experiment


def run_folder(runs: Path, task: Task, settings: Settings) -> Path:
    """Where a run is kept."""
    fold = f"-fold{settings.fold}" if settings.fold else ""
    return runs / task.name / f"{settings.cell}-{settings.layers}x{settings.hidden}-seed{settings.seed}{fold}"


def _add_feed_forward(experiment: Experiment) -> None:
    """Let every run know what a network without memory reaches: its file will say so."""
    measure = experiment.task.measure.name
    plain = experiment.runs.get(_BASELINE, ())
    for runs in (runs for cell, runs in experiment.runs.items() if cell != _BASELINE):
        for run, other in zip(runs, plain, strict=False):
            run.add_metrics({f"feedforward_{measure}": other.metrics[f"test_{measure}"]})
