"""The page of a training: `runs/<task>/report.html`, and its pictures beside it."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from recurra_training.experiment import Experiment
from recurra_training.export import export_onnx
from recurra_training.fit import CONFIG, Run
from recurra_training.labels import label
from recurra_training.measure import evaluate_file, seconds_a_call
from recurra_training.precision import Precision, reduce_precision
from recurra_training.release import parts, sequences_of
from recurra_training.report.answers import pictures_of
from recurra_training.report.compare import draw_comparison
from recurra_training.report.curves import draw_curves, draw_gradients, title_of
from recurra_training.report.page import Page
from recurra_training.report.samples import samples
from recurra_training.verify import DifferenceError, verify

REPORT: Final = "report.html"
_PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "float16", "int8")
_SESSIONS: Final = 32


def write_report(experiment: Experiment, folder: Path) -> Path:
    """Write the page of an experiment into `folder`, with its pictures in `folder/pictures`.

    Returns:
        The page.
    """
    task, best = experiment.task, experiment.best()
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    page = Page(f"Training report: {task.name}", task.description)
    _compare(page, experiment, pictures)
    page.heading("How they learnt")
    draw_curves(pictures / "curves.png", experiment)
    page.picture(pictures / "curves.png")
    draw_gradients(pictures / "gradients.png", experiment, best)
    page.picture(
        pictures / "gradients.png",
        "Left: before it is clipped. Right: averaged over test recordings; what lies far below the others cannot be "
        "learnt from.",
    )
    _answers(page, experiment, best, pictures)
    _files(page, experiment, best)
    page.heading("How to repeat it")
    page.code(f"recurra train --config {best.folder / CONFIG}\n\n{(best.folder / CONFIG).read_text(encoding='utf-8')}")
    page.table(["package", "version"], [[name, version] for name, version in best.trained.facts["versions"].items()])
    page.write(folder / REPORT)
    return folder / REPORT


def _compare(page: Page, experiment: Experiment, pictures: Path) -> None:
    measure = experiment.task.measure
    figures = [*experiment.baselines(), *experiment.figures()]
    page.heading("Who is ahead")
    draw_comparison(pictures / "comparison.png", measure, figures)
    seeds = max(len(figure.values) for figure in figures)
    caption = f"Bars: the mean of {seeds} seeds. Dots: each of them." if seeds > 1 else "One seed: luck is in it."
    page.picture(pictures / "comparison.png", caption)
    parameters = {cell: runs[0].trained.facts["parameters"] for cell, runs in experiment.runs.items()}
    seconds = {cell: runs[0].trained.facts["seconds"] for cell, runs in experiment.runs.items()}
    rows = []
    for figure in figures:
        facts = (
            [f"{parameters[figure.name]:,}", f"{seconds[figure.name]:.0f} s"] if figure.name in parameters else ["", ""]
        )
        spread = [measure.text(figure.spread)] if seeds > 1 else []
        rows.append([figure.label, measure.text(figure.mean), *spread, *facts])
    deviation = ["spread (standard deviation)"] if seeds > 1 else []
    page.table(["", title_of(measure), *deviation, "parameters", "training"], rows)


def _answers(page: Page, experiment: Experiment, best: Run, pictures: Path) -> None:
    task, network = experiment.task, best.trained.network
    test = task.split(best.trained.facts["fold"]).test
    page.heading(f"What it answers ({label(best.trained.facts['cell'])})")
    for name, draw in pictures_of(task, network, best.trained.facts["cell"], test).items():
        caption = draw(pictures / f"{name}.png")
        page.picture(pictures / f"{name}.png", caption)
    for heading, lines in samples(task, network, test).items():
        page.text(heading)
        page.code("\n".join(lines))


def _files(page: Page, experiment: Experiment, best: Run) -> None:
    page.heading("The exported model")
    task = experiment.task
    sequences = sequences_of(task)
    for ending, network, signature in parts(best.trained):
        with TemporaryDirectory() as folder:
            paths = {precision: Path(folder, f"{precision}.onnx") for precision in _PRECISIONS}
            export_onnx(network, paths["float32"], signature)
            for precision in _PRECISIONS[1:]:
                reduce_precision(paths["float32"], paths[precision], precision)
            if ending:
                page.text(f"{task.name}{ending}:")
            checks = verify(paths["float32"], network, sequences=sequences)
            page.table(
                ["whole sequences alone, against", "largest difference"],
                [[check.name, f"{check.difference:.1e}"] for check in checks[1:]],
            )
            page.table(*_precisions(experiment, best, paths, whole=not ending))


def _precisions(
    experiment: Experiment, best: Run, paths: dict[Precision, Path], *, whole: bool
) -> tuple[list[str], list[list[str]]]:
    task, measure = experiment.task, experiment.task.measure
    test = task.split(best.trained.facts["fold"]).test[:1000]
    one, many = (seconds_a_call(paths, batch) for batch in (1, _SESSIONS))
    header = ["weights", *([title_of(measure)] if whole else []), "file", "step of 1 session"]
    header += [f"of {_SESSIONS}", "differs at most by"]
    rows = []
    for name, path in paths.items():
        figure = [measure.text(evaluate_file(path, test, task)[measure.name])] if whole else []
        size = f"{path.stat().st_size / 1024:.0f} KiB"
        try:
            difference = max(check.difference for check in verify(path, sequences=sequences_of(task)))
        except DifferenceError as error:
            difference = max(check.difference for check in error.checks)
        speeds = [f"{1e6 * times[name]:.0f} µs ({times['float32'] / times[name]:.2f} x)" for times in (one, many)]
        rows.append([name, *figure, size, *speeds, f"{difference:.1e}"])
    return header, rows
