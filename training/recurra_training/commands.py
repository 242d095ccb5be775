"""What the commands do and show."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import nn

from recurra_training import metrics
from recurra_training.checkpoint import load_trained
from recurra_training.contract import read_model
from recurra_training.data import TASKS, Task
from recurra_training.experiment import HELD_OUT, run_experiment
from recurra_training.fit import Run
from recurra_training.gates import has_gates, with_gates
from recurra_training.publish import check_publishable
from recurra_training.release import release
from recurra_training.settings import Settings
from recurra_training.verify import Check, DifferenceError
from recurra_training.verify import verify as verify_file


def train(
    console: Console,
    task_name: str,
    settings: Settings,
    runs: Path,
    models: Path | None,
    *,
    name: str,
    baseline: bool,
    resume: bool,
) -> None:
    """Train on a task, and publish below `models` if that is given."""
    if models is not None:
        check_publishable(models, name or task_name)
    task = TASKS[task_name]()
    try:
        run = run_experiment(task, settings, runs, console, baseline=baseline, resume=resume)
    except KeyboardInterrupt:
        console.print("Interrupted. The same command with --resume goes on.")
        raise
    published = None
    if models is not None:
        sequences = [recording.x for recording in task.split().validation]
        with console.status("Exporting and verifying ..."):
            published, checks = release(run.trained, models, name=name, sequences=sequences, twice=not resume)
        _print_checks(console, checks)
    _print_figures(console, task, run)
    console.print(f"\nRun         {run.folder}\nRecordings  {runs / task.name / HELD_OUT}")
    if published:
        console.print(f"Published   {published}")


def export(console: Console, run: Path, models: Path, *, name: str, version: str, gates: bool) -> None:
    """Publish what a run has trained."""
    with console.status("Exporting and verifying ..."):
        published, checks = release(load_trained(run), models, name=name, version=version, gates=gates)
    _print_checks(console, checks)
    console.print(f"\nPublished   {published}")


def verify(console: Console, model: Path, checkpoint: Path | None) -> None:
    """Verify a model file."""
    network: nn.Module | None = None
    if checkpoint is not None:
        trained = load_trained(checkpoint)
        network = trained.network
        if has_gates(read_model(model)):
            network, _ = with_gates(network, trained.signature)
    try:
        checks = verify_file(model, network)
    except DifferenceError as error:
        _print_checks(console, error.checks)
        raise
    _print_checks(console, checks)


def _print_checks(console: Console, checks: Sequence[Check]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("Verified: whole sequences alone, against")
    table.add_column("largest difference", justify="right")
    for check in checks[1:] if checks[0].passed else checks:  # the first compares whole sequences with themselves
        table.add_row(check.name, f"{check.difference:.1e}" + ("" if check.passed else " too much"))
    console.print()
    console.print(table)


def _print_figures(console: Console, task: Task, run: Run) -> None:
    classes = task.output.kind == "probability"
    measure = metrics.measure(task.output.kind).name
    facts = run.trained.facts
    table = Table(box=None, pad_edge=False)
    table.add_column(f"On recordings not trained on ({', '.join(facts['test_groups'])})")
    table.add_column("steps that are right" if classes else measure, justify="right")
    figures = {
        "always the most frequent class": "majority_accuracy",
        "always the mean": "mean_rmse",
        "feed-forward, no memory": f"feedforward_{measure}",
        facts["cell"]: f"test_{measure}",
    }
    for label, figure in figures.items():
        if figure in run.metrics:
            value = run.metrics[figure]
            table.add_row(label, f"{value:.1%}" if classes else f"{value:.4g}")
    console.print()
    console.print(table)
