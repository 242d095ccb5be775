"""What a training shows, and what it writes down."""

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from recurra_training.data.task import Measure


class History(pl.Callback):
    """The figures of every epoch; kept in the checkpoints, so that a resumed run has them all."""

    def __init__(self, path: Path) -> None:
        """Write them to a CSV file too, a line for each epoch."""
        self._path = path
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the figures, and write them."""
        del pl_module
        figures = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        self.epochs.append({"epoch": trainer.current_epoch + 1, **figures})
        if trainer.is_global_zero:
            with self._path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=list(self.epochs[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.epochs)

    def best(self, measure: Measure) -> float:
        """The best figure on the validation recordings so far; NaN before the first epoch."""
        figures = [epoch[f"validation_{measure.name}"] for epoch in self.epochs]
        choose = max if measure.best == "max" else min
        return choose(figures, default=float("nan"))

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.epochs = list(state_dict["epochs"])


class ProgressBar(pl.Callback):
    """One bar for the whole training, and a line for each epoch that is the best so far."""

    def __init__(self, console: Console | None, name: str, measure: Measure, history: History) -> None:
        self._console = console
        self._name = name
        self._measure = measure
        self._history = history
        self._best = float("nan")
        self._bar: Progress | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For a process of its own: a console cannot be sent there, it gets its own."""
        return self.__dict__ | {"_console": None}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar."""
        del pl_module
        self._best = self._history.best(self._measure)
        if not trainer.is_global_zero:
            self._console = Console(quiet=True)
        console = self._console = self._console or Console(highlight=False, soft_wrap=True)
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs, {task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(
            TextColumn("{task.description}"),
            *columns,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar.start()
        done, total = trainer.current_epoch, trainer.max_epochs
        self._task = self._bar.add_task(self._name, completed=done, total=total, figures="...")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move on."""
        del trainer, pl_module
        last = self._history.epochs[-1]
        figure = last[f"validation_{self._measure.name}"]
        figures = f"loss {last['train_loss']:.3f}, validation {self._measure.name} {figure:.3f}"
        assert self._bar is not None and self._console is not None  # noqa: S101, PT018  # made when training began
        self._bar.update(self._task, completed=last["epoch"], figures=figures)
        best = self._history.best(self._measure)
        if best != self._best:
            self._console.print(f"{self._name}: epoch {last['epoch']:.0f}, {figures}", highlight=False)
        self._best = best

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the bar away."""
        del trainer, pl_module
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the bar away."""
        del trainer, pl_module, exception
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
