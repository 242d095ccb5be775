"""The page of all lessons: `index.html` in the folder of the runs, and its pictures beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch

from recurra_training.build import build
from recurra_training.cells import Cell
from recurra_training.experiment import Figure
from recurra_training.labels import label
from recurra_training.lessons.results import Result
from recurra_training.lessons.table import by_steps, cure_rows, rows_of
from recurra_training.models import NetworkConfig
from recurra_training.report.answers import pictures_of
from recurra_training.report.compare import draw_comparison
from recurra_training.report.curves import draw_curves, lag_curves, title_of
from recurra_training.report.page import Page
from recurra_training.report.samples import samples
from recurra_training.report.style import color, picture
from recurra_training.studies import exploding
from recurra_training.studies.gradients import gradient_by_lag

_STEPS: Final = 200


def write_page(
    folder: Path, results: Sequence[Result], cures: Sequence[Figure], shown: Sequence[exploding.Course]
) -> Path:
    """Write `index.html` with all there is to see."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    page = Page(
        "Recurrent networks, measured",
        "Every idea of the introduction, trained here and judged on data not learnt from.",
    )
    for result in results:
        if result.lesson.idea:
            _lesson(page, result, pictures)
        if result.lesson.task == "adding":
            _vanishing(page, result, results, pictures)
    page.heading("The exploding gradient")
    page.text("ReLU units whose recurrent weights stretch what goes through them, taught by plain gradient descent.")
    exploding.draw(pictures / "exploding.png", shown)
    page.picture(pictures / "exploding.png", "A cross: the training came to a value that is no number.")
    page.table(["", "how it ended"], [[course.name, course.ended] for course in shown], words=2)
    page.heading("The cures, one by one")
    page.text("The adding problem over 50 steps; each remedy is switched on by itself.")
    page.table(["", "mean squared error", "each seed"], cure_rows(cures))
    page.write(folder / "index.html")
    return folder / "index.html"


def _lesson(page: Page, result: Result, pictures: Path) -> None:
    task, lesson = result.experiment.task, result.lesson
    page.heading(lesson.idea)
    page.text(lesson.about)
    draw_comparison(pictures / f"{task.name}.png", task.measure, result.figures)
    page.picture(pictures / f"{task.name}.png", "Bars: the mean over the seeds. Dots: each of them.")
    page.table(["", title_of(task.measure)], rows_of(result.figures, task.measure))
    page.table(["claimed", "found"], [[verdict.text, str(verdict)] for verdict in result.verdicts], words=2)
    draw_curves(pictures / f"{task.name}-curves.png", result.experiment)
    page.picture(pictures / f"{task.name}-curves.png")
    best = result.experiment.best().trained
    test = task.split(best.facts["fold"]).test
    for name, draw in pictures_of(task, best.network, best.facts["cell"], test).items():
        caption = draw(pictures / f"{task.name}-{name}.png")
        page.picture(pictures / f"{task.name}-{name}.png", caption)
    for heading, lines in samples(task, best.network, test).items():
        page.text(heading)
        page.code("\n".join(lines))


def _vanishing(page: Page, adding: Result, results: Sequence[Result], pictures: Path) -> None:
    page.text("How it worsens with the number of steps (mean squared error):")
    page.table(*by_steps(results))
    path = pictures / "vanishing.png"
    draw_vanishing(path, adding)
    page.picture(
        path,
        "How much an answer still depends on what was read so many steps before. What is thousands of times smaller "
        "than the rest of the gradient teaches nothing.",
    )


def draw_vanishing(path: Path, adding: Result) -> None:
    """The gradient by lag: of networks that have learnt nothing yet, and of those that learnt the adding problem."""
    cells: tuple[Cell, ...] = ("rnn", "gru", "lstm")
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(32, _STEPS, 8)).astype(np.float32))
    with picture(path, columns=2, size=(10, 3.8), sharey=True) as (_, (left, right)):
        for cell in cells:
            torch.manual_seed(0)
            norms = gradient_by_lag(build(NetworkConfig(cell, inputs=8, outputs=4)), x)
            left.plot(norms / norms[0], color=color(cell), label=label(cell))
        for name, norms in lag_curves(adding.experiment).items():
            if name != "ffnn":
                right.plot(norms / norms[0], color=color(name), label=label(name))
        left.set(title="Before training", xlabel="steps before the answer", ylabel="gradient, of that at the last step")
        left.set(yscale="log", ylim=(1e-16, 30))
        right.set(title="After training on the adding problem", xlabel="steps before the answer")
        left.legend()
