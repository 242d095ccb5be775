"""What the commands do and show."""

from collections.abc import Sequence
from pathlib import Path

from recurra_verification import Check
from recurra_verification import table as as_table
from rich.console import Console
from rich.table import Table

from recurra_training import team
from recurra_training.cells import Cell
from recurra_training.checkpoint import load_trained
from recurra_training.contract import read_model
from recurra_training.data.table import summary
from recurra_training.data.task import Task
from recurra_training.experiment import HELD_OUT, Experiment, run_experiment
from recurra_training.gates import has_gates, with_gates
from recurra_training.precision import Precision
from recurra_training.publish import check_publishable
from recurra_training.release import release, sequences_of
from recurra_training.report.training import write_report
from recurra_training.request import resolve
from recurra_training.settings import Changes
from recurra_training.source import TableSource
from recurra_training.verify import DifferenceError
from recurra_training.verify import verify as verify_file


def train(
    console: Console,
    task_name: str,
    source: TableSource,
    config: Path | None,
    changes: Changes,
    runs: Path,
    models: Path | None,
    *,
    cells: Sequence[Cell],
    seeds: int,
    name: str,
    resume: bool,
) -> None:
    """Train on a task, and publish the best below `models` if that is given."""
    console.quiet = not team.is_first()
    task, settings, cells = resolve(task_name, source, config, changes, cells)
    if models is not None:
        check_publishable(models, name or task.name)
    if task.source is not None:
        _print_summary(console, task)
    try:
        experiment = run_experiment(task, settings, runs, console, cells=cells, seeds=seeds, resume=resume)
    except KeyboardInterrupt:
        console.print("Interrupted. The same command with --resume goes on.")
        raise
    finally:
        team.part()
    if not team.is_first():
        return
    best = experiment.best()
    published = []
    if models is not None:
        with console.status("Exporting and verifying ..."):
            published = release(best.trained, models, name=name, sequences=sequences_of(task), twice=not resume)
        for one in published:
            _print_checks(console, one.checks)
    _print_figures(console, experiment)
    with console.status("Drawing the report ..."):
        page = write_report(experiment, runs / task.name)
    console.print(f"\nRun         {best.folder}\nRecordings  {runs / task.name / HELD_OUT}\nReport      {page}")
    for one in published:
        console.print(f"Published   {one.path}")


def export(
    console: Console,
    run: Path,
    models: Path,
    *,
    name: str,
    version: str,
    gates: bool,
    precision: Precision,
    tolerance: float,
) -> None:
    """Publish what a run has trained."""
    with console.status("Exporting and verifying ..."):
        published = release(
            load_trained(run),
            models,
            name=name,
            version=version,
            gates=gates,
            precision=precision,
            tolerance=tolerance,
        )
    for one in published:
        _print_checks(console, one.checks)
        console.print(f"\nPublished   {one.path}")


def verify(console: Console, model: Path, checkpoint: Path, *, tolerance: float) -> None:
    """Verify a model file, and that it is what a run has trained."""
    trained = load_trained(checkpoint)
    network = trained.network
    if has_gates(read_model(model)):
        network, _ = with_gates(network, trained.signature)
    try:
        checks = verify_file(model, network, tolerance=tolerance)
    except DifferenceError as error:
        _print_checks(console, error.checks)
        raise
    _print_checks(console, checks)


def _print_checks(console: Console, checks: Sequence[Check]) -> None:
    console.print()
    console.print(as_table(checks))


def _print_summary(console: Console, task: Task) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for row in summary(task):
        table.add_row(*row)
    console.print(table)
    console.print()


def _print_figures(console: Console, experiment: Experiment) -> None:
    task = experiment.task
    facts = experiment.best().trained.facts
    table = Table(box=None, pad_edge=False)
    table.add_column(f"On recordings not trained on ({', '.join(facts['test_groups'])})")
    figures = [*experiment.baselines(), *experiment.figures()]
    seeds = max(len(figure.values) for figure in figures)
    unit = f" ({task.measure.unit})" if task.measure.unit not in ("", "%") else ""
    table.add_column(task.measure.title + unit, justify="right")
    if seeds > 1:
        table.add_column(f"spread over {seeds} seeds", justify="right")
    for figure in figures:
        spread = [f"± {task.measure.text(figure.spread)}"] if seeds > 1 else []
        table.add_row(figure.label, task.measure.text(figure.mean), *spread)
    console.print()
    console.print(table)
