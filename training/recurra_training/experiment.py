"""One training with what it is to be compared to."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console

from recurra_training import metrics
from recurra_training.data import Task
from recurra_training.data.held_out import write_recordings
from recurra_training.fit import Run, fit
from recurra_training.settings import Settings

HELD_OUT: Final = "held_out"
_BASELINE: Final = "ffnn"
_BASELINE_LAYERS: Final = 2
"""The least that the baseline has: two beat one, and a baseline should be as good as it gets."""


def run_experiment(
    task: Task, settings: Settings, runs: Path, console: Console, *, baseline: bool = True, resume: bool = False
) -> Run:
    """Train a network below `runs/<task>/`, and beside it the feed-forward network of the same width.

    The baseline is trained with the same settings on the same split. Its figure joins the metrics of the run as
    `feedforward_accuracy` (or `feedforward_rmse`). The test recordings are written to `runs/<task>/held_out/`.

    Raises:
        As `fit`.
    """
    root = runs / task.name
    run = fit(task, settings, _folder(root, settings), console, resume=resume)
    if baseline and settings.cell != _BASELINE:
        plain = replace(settings, cell=_BASELINE, layers=max(settings.layers, _BASELINE_LAYERS))
        other = fit(task, plain, _folder(root, plain), console, resume=resume)
        measure = metrics.measure(task.output.kind).name
        run.add_metrics({f"feedforward_{measure}": other.metrics[f"test_{measure}"]})
    write_recordings(task, task.split().test, root / HELD_OUT)
    return run


def _folder(root: Path, settings: Settings) -> Path:
    return root / f"{settings.cell}-{settings.layers}x{settings.hidden}-seed{settings.seed}"
