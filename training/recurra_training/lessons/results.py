"""The figures of the lessons, and which of the claims hold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from recurra_training.checkpoint import load_trained
from recurra_training.experiment import Experiment, Figure, run_folder
from recurra_training.fit import Run
from recurra_training.labels import label
from recurra_training.lessons.plan import CURES, LESSONS, Claim, Lesson, cure_jobs, load, settings_of
from recurra_training.lessons.trainings import FAILED


class Verdict(NamedTuple):
    """A claim, and in how many of how many seeds it holds."""

    text: str
    held: int
    seeds: int

    def __str__(self) -> str:
        word = "holds" if self.held == self.seeds else "DOES NOT HOLD" if not self.held else "holds in part"
        return f"{word} ({self.held} of {self.seeds} seeds)"


@dataclass(frozen=True, slots=True)
class Result:
    """A lesson with what came of it."""

    lesson: Lesson
    experiment: Experiment
    figures: Sequence[Figure]
    verdicts: Sequence[Verdict]


def results(runs: Path, *, smoke: bool) -> list[Result]:
    """Read what was trained for each lesson."""
    return [_result(lesson, runs, smoke=smoke) for lesson in LESSONS]


def _result(lesson: Lesson, runs: Path, *, smoke: bool) -> Result:
    task = load(lesson.task, smoke=smoke)
    trained = {
        cell: [Run(folder, load_trained(folder)) for one in each if (folder := run_folder(runs, task, one))]
        for cell, each in settings_of(lesson, smoke=smoke).items()
    }
    experiment = Experiment(task, trained)
    figures = [*experiment.baselines(), *experiment.figures()]
    return Result(lesson, experiment, figures, [judge(claim, experiment, figures) for claim in lesson.claims])


def judge(claim: Claim, experiment: Experiment, figures: Sequence[Figure]) -> Verdict:
    """Hold a claim against the figures of each seed."""
    measure = experiment.task.measure
    values = {figure.name: figure.values for figure in figures}
    one = values[claim.better]
    if not claim.worse:
        bound = "at most" if measure.best == "min" else "at least"
        held = [not measure.better(claim.limit, value) for value in one]
        return Verdict(f"{label(claim.better)}: {measure.title} {bound} {claim.limit:g}", sum(held), len(held))
    held = [measure.better(*pair) for pair in zip(one, values[claim.worse], strict=True)]
    return Verdict(f"{_short(claim.better)} ahead of {_short(claim.worse)}", sum(held), len(held))


def _short(name: str) -> str:
    """A label without its explanation."""
    return label(name).partition(":")[0].partition(",")[0]


def minutes(runs: Path, found: Sequence[Result], *, smoke: bool) -> list[tuple[str, int, float]]:
    """What each lesson took to train, whenever that was: its name, its trainings, and their minutes, one after another.

    A training that came to no number is not counted.
    """
    spent = [
        (result.lesson.task, [run for runs in result.experiment.runs.values() for run in runs]) for result in found
    ]
    folders = [job.folder for jobs in cure_jobs(runs, smoke=smoke).values() for job in jobs]
    spent.append(("cures", [Run(folder, load_trained(folder)) for folder in folders if not _failed(folder)]))
    return [(name, len(each), sum(run.trained.facts["seconds"] for run in each) / 60) for name, each in spent]


def cures(runs: Path, *, smoke: bool) -> list[Figure]:
    """The mean squared error with each cure, by its name; NaN where a training came to no number."""
    jobs = cure_jobs(runs, smoke=smoke)
    return [Figure(cure.name, tuple(_error(job.folder) for job in jobs[cure.name])) for cure in CURES]


def _error(folder: Path) -> float:
    return math.nan if _failed(folder) else Run(folder, load_trained(folder)).metrics["test_mse"]


def _failed(folder: Path) -> bool:
    return (folder / FAILED).is_file()
