"""Trains one network into one run folder.

config.yaml              the task and the settings; `recurra train --config` repeats the run
checkpoints/best.ckpt    the weights with the best figure on the validation recordings
checkpoints/last.ckpt    where to go on after an interruption
history.csv              the figures of every epoch
run.json                 metrics, seed, versions; written last: a run that has it is finished
"""

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerStatus
from rich.console import Console
from torch import nn

from recurra_training import metrics, team
from recurra_training.build import build, configure
from recurra_training.checkpoint import BEST, FACTS, LAST, Trained, load_trained
from recurra_training.checkpoint_io import AtomicCheckpointIO
from recurra_training.data.recording import Split
from recurra_training.data.segments import DataModule
from recurra_training.data.task import Task
from recurra_training.describe import HasStates, describe
from recurra_training.errors import RunError
from recurra_training.learner import Learner
from recurra_training.loggers import loggers
from recurra_training.models import Network
from recurra_training.progress import History, ProgressBar
from recurra_training.quiet import quiet
from recurra_training.settings import Settings
from recurra_training.versions import versions

CONFIG: Final = "config.yaml"
HISTORY: Final = "history.csv"
_FEW: Final = 12
"""Groups held out that are worth listing."""

MakeNetwork = Callable[[], nn.Module]
"""Makes a network of one's own, with random weights."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished training: its folder, and the network with its best weights."""

    folder: Path
    trained: Trained

    @property
    def metrics(self) -> dict[str, float]:
        """Its figures; those that begin with `test_` are on groups that had no part in training."""
        found: dict[str, float] = self.trained.facts["metrics"]
        return found

    def add_metrics(self, figures: dict[str, float]) -> None:
        """Put more figures into `run.json`."""
        self.metrics.update(figures)
        if team.is_first():
            _write(self.folder / FACTS, self.trained.facts)


def fit(
    task: Task,
    settings: Settings,
    folder: Path,
    console: Console,
    *,
    resume: bool = False,
    network: MakeNetwork | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> Run:
    """Train a network, restore its best weights and judge it on the test recordings.

    The test recordings have no part in training, nor in the choice of the best weights. Where torchrun started this
    process, all of its processes train together, and the first writes the files.

    Args:
        task: What to learn.
        settings: How.
        folder: The run folder; without `resume`, what was in it is removed.
        console: Where progress is shown.
        resume: Go on where an interrupted run with the same settings ended. A finished run is not trained again; where
            there is no run, one begins.
        network: Makes a network of one's own: anything with `forward(x, *states) -> (y, *states)` and
            `initial_states(batch)`. None: the network that the settings ask for.
        callbacks: More callbacks for the trainer.

    Raises:
        RunError: The folder holds a run with other settings, or the loss became NaN or infinite.
        KeyboardInterrupt: The training was interrupted; `resume` goes on with it.
    """
    settings = replace(settings, processes=team.size() or settings.processes)
    config = {"task": task.name} | ({"data": dict(task.source)} if task.source else {}) | asdict(settings)
    if team.is_first():
        _begin(folder, config, resume=resume)
    team.meet()
    split = task.split(settings.fold)
    if not (folder / FACTS).exists():
        began = time.monotonic()
        _train(task, split, settings, folder, console, network, callbacks)
        if team.is_first():
            facts = _judge(task, split, settings, load_trained(folder, network))
            _write(folder / FACTS, facts | {"seconds": round(time.monotonic() - began, 1)})
        team.meet()
    return Run(folder, load_trained(folder, network))


def _begin(folder: Path, config: dict[str, Any], *, resume: bool) -> None:
    if resume and (folder / CONFIG).exists():
        _check_same(folder, config)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def _train(
    task: Task,
    split: Split,
    settings: Settings,
    folder: Path,
    console: Console,
    make: MakeNetwork | None,
    callbacks: Sequence[pl.Callback],
) -> None:
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    config = None if make else configure(task, settings)
    network: nn.Module = make() if make else build(configure(task, settings))
    if isinstance(network, Network):
        readings = None if task.tokens else torch.cat([torch.from_numpy(recording.x) for recording in split.train])
        targets = None if task.is_classes else torch.from_numpy(metrics.asked_targets(split.train))
        network.fit_scales(readings, targets)
    signature = describe(
        cast("HasStates", network),
        task.input,
        task.output,
        description=task.description,
        step_seconds=task.step_seconds,
        feedback=task.feedback,
    )
    about = {"task": task.name, "network": config and asdict(config), "signature": signature.to_json()}
    learner = Learner(
        network,
        task,
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        seed=settings.seed,
        about=about,
    )
    data = DataModule(split, batch_size=settings.batch_size, steps=settings.segment_steps, seed=settings.seed)
    history = History(folder / HISTORY)
    measure = task.measure
    monitor = f"validation_{measure.name}"
    kept: dict[str, Any] = {
        "dirpath": folder / BEST.parent,
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    with quiet("pytorch_lightning"):
        trainer = pl.Trainer(
            accelerator="cpu",
            **_processes(settings),
            max_epochs=settings.epochs,
            gradient_clip_val=settings.clip or None,
            gradient_clip_algorithm=settings.clip_by,
            reload_dataloaders_every_n_epochs=1,  # each epoch has an order of its own
            default_root_dir=folder,
            logger=loggers(folder),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            plugins=[AtomicCheckpointIO()],
            callbacks=[
                history,
                ProgressBar(console, f"{task.name} {settings.cell}", measure, history),
                EarlyStopping(monitor, patience=settings.patience, mode=measure.best, stopping_threshold=task.goal),
                ModelCheckpoint(filename=BEST.stem, monitor=monitor, mode=measure.best, **kept),
                ModelCheckpoint(filename=LAST.stem, **kept),
                *callbacks,
            ],
        )
        last = folder / LAST
        with _interruptible(trainer):
            trainer.fit(learner, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)


def _processes(settings: Settings) -> dict[str, Any]:
    """Which processes train: those that torchrun started, or as many as the settings say, started by Lightning."""
    if team.size():
        here = team.size_here()
        return {"strategy": "ddp", "devices": here, "num_nodes": team.size() // here}
    return {"strategy": "ddp_spawn" if settings.processes > 1 else "auto", "devices": settings.processes}


def _judge(task: Task, split: Split, settings: Settings, trained: Trained) -> dict[str, Any]:
    """The facts of a run whose training has ended."""
    measure = task.measure.name
    figures = {f"test_{name}": value for name, value in metrics.evaluate(trained.network, split.test, task).items()}
    for part, recordings in (("validation", split.validation), ("train", split.train)):
        figures[f"{part}_{measure}"] = metrics.evaluate(trained.network, recordings, task)[measure]
    for name, value in metrics.baselines(task, split).items():
        figures[f"{name}_{measure}"] = value
    groups = sorted({recording.group for recording in split.test})
    return {
        "task": task.name,
        "cell": settings.cell,
        "metrics": {name: float(f"{value:.5g}") for name, value in figures.items()},
        "test_groups": groups if len(groups) <= _FEW else [f"{len(groups):,} of them"],
        "seed": settings.seed,
        "fold": settings.fold,
        "parameters": sum(parameter.numel() for parameter in trained.network.parameters()),
        "versions": versions(),
    }


def _check_same(folder: Path, config: dict[str, Any]) -> None:
    kept = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    for name, value in config.items():
        if kept.get(name) != value:
            raise RunError(
                f"{folder} was begun with {name} {kept.get(name)}, not {value}: resume it with its own settings, "
                "or train anew without --resume"
            )


def _write(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _interruptible(trainer: pl.Trainer) -> Iterator[None]:
    """Let Ctrl-C come out as what it is: Lightning turns it into an exit, and ignores the next ones."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if trainer.state.status is not TrainerStatus.INTERRUPTED:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
