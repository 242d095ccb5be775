"""The lessons as Markdown, for docs/learning.md."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from recurra_training.data.adding import CONSTANT_ERROR
from recurra_training.data.task import Measure
from recurra_training.experiment import Figure
from recurra_training.lessons.plan import CURES_EPOCHS, CURES_STEPS
from recurra_training.lessons.results import Result
from recurra_training.report.curves import title_of
from recurra_training.studies.exploding import Course

BEGIN: Final = "<!-- what stands below is written by `make lessons` -->"
END: Final = "<!-- up to here -->"
_ADDING: Final = "adding"


def write_into(document: Path, text: str) -> None:
    """Put the text between the two marks of a document.

    Raises:
        ValueError: It does not have them.
    """
    before, begin, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{document} does not have the lines {BEGIN} and {END}")
    document.write_text(f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}", encoding="utf-8")


def markdown(results: Sequence[Result], cures: Sequence[Figure], courses: Sequence[Course]) -> str:
    """All figures, and which claims hold."""
    parts = []
    for result in results:
        if result.lesson.idea:
            parts += [f"### {result.lesson.idea} (`{result.experiment.task.name}`)", result.lesson.about]
            parts += [_figures(result.experiment.task.measure, result.figures)]
            if result.lesson.task == _ADDING:
                parts += ["How it worsens with the number of steps, mean squared error:", _by_steps(results)]
            parts += ["\n".join(f"* {verdict.text}: {verdict}" for verdict in result.verdicts)]
    parts += ["### The cures, one by one", _cures_about(), _cures(cures)]
    parts += ["### The exploding gradient", _exploding(courses)]
    return "\n\n".join(parts)


def rows_of(figures: Sequence[Figure], measure: Measure) -> list[list[str]]:
    """A row for each figure: its name, its mean and its spread."""
    return [[figure.label, figure.text(measure)] for figure in figures]


def by_steps(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """The adding problem by its length: a header, and a row for each length."""
    adding = [result for result in results if result.lesson.task.startswith(_ADDING)]
    steps = {result.lesson.task: int(result.lesson.task.partition("-")[2] or 100) for result in adding}
    rows = []
    for result in sorted(adding, key=lambda result: steps[result.lesson.task]):
        found = {figure.name: figure.text(result.experiment.task.measure) for figure in result.figures}
        rows.append([str(steps[result.lesson.task]), f"{CONSTANT_ERROR:.4g}", found["rnn"], found["lstm"]])
    return ["steps", "always 1", "RNN", "LSTM"], rows


def cure_rows(cures: Sequence[Figure]) -> list[list[str]]:
    """A row for each cure: its name, the mean over the seeds that came to a number, each seed."""
    rows = []
    for figure in cures:
        known = [value for value in figure.values if math.isfinite(value)]
        mean = f"{sum(known) / len(known):.4f}" if known else "-"
        rows.append([figure.name, mean, ", ".join("no number" if math.isnan(v) else f"{v:.4f}" for v in figure.values)])
    return rows


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ruler, *rows))


def _figures(measure: Measure, figures: Sequence[Figure]) -> str:
    seeds = max(len(figure.values) for figure in figures)
    better = "more is better" if measure.best == "max" else "less is better"
    return _table(
        ["", f"{title_of(measure)}; {better}; mean ± deviation over {seeds} seeds"], rows_of(figures, measure)
    )


def _by_steps(results: Sequence[Result]) -> str:
    return _table(*by_steps(results))


def _cures_about() -> str:
    return (
        f"The adding problem over {CURES_STEPS} steps, {CURES_EPOCHS} epochs; each remedy is switched on by itself. "
        f"Who always answers 1 errs by {CONSTANT_ERROR:.4f}."
    )


def _cures(cures: Sequence[Figure]) -> str:
    return _table(["", "mean squared error", "each seed"], cure_rows(cures))


def _exploding(courses: Sequence[Course]) -> str:
    return "\n".join(f"* {course.name}: {course.ended}" for course in courses)
