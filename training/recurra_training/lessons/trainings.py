"""Trains what the lessons need, several at a time; what was trained before is not trained again."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recurra_training.checkpoint import FACTS
from recurra_training.errors import RunError
from recurra_training.fit import fit
from recurra_training.lessons.plan import Job, load

FAILED: Final = "failed.txt"
"""Stands in the folder of a training whose loss became no number, and says so."""


def train_all(jobs: Sequence[Job], console: Console, *, processes: int) -> None:
    """Train, each in a process of its own, with a bar that shows how far it is."""
    open_jobs = [job for job in jobs if not _done(job.folder)]
    columns = (TextColumn("trainings"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # Processes that are spawned, not forked: PyTorch's threads do not survive a fork.
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
        ProcessPoolExecutor(processes, get_context("spawn")) as pool,
    ):
        shown = bar.add_task("", total=len(jobs), completed=len(jobs) - len(open_jobs))
        for number, done in enumerate(as_completed([pool.submit(_train, job) for job in open_jobs]), 1):
            bar.advance(shown)
            if not console.is_terminal:
                console.print(f"{number} of {len(open_jobs)} trainings: {done.result()}")
            done.result()


def _train(job: Job) -> str:
    try:
        run = fit(load(job.task, smoke=job.smoke), job.settings, job.folder, Console(quiet=True), resume=True)
    except RunError as error:  # that is a result too
        (job.folder / FAILED).write_text(f"{error}\n", encoding="utf-8")
        return f"{job.folder}: {error}"
    return f"{job.folder} in {run.trained.facts['seconds']} s"


def _done(folder: Path) -> bool:
    return (folder / FACTS).is_file() or (folder / FAILED).is_file()
