"""The commands `recurra train`, `recurra export` and `recurra verify`: their options.

What they do stands in `commands`, which is imported when a command runs: its help must not wait for PyTorch.
"""

from pathlib import Path
from types import ModuleType
from typing import Annotated, Final, Literal

from cyclopts import Parameter
from rich.console import Console

from recurra_training.settings import Settings

_DEFAULTS: Final = Settings()
_MODELS: Final = Path("models")
_RUNS: Final = Path("runs")


def train(
    task: Literal["watch"],
    *,
    settings: Settings = _DEFAULTS,
    baseline: bool = True,
    resume: Annotated[bool, Parameter(negative="")] = False,
    publish: bool = True,
    name: str = "",
    models: Path = _MODELS,
    runs: Path = _RUNS,
) -> None:
    """Train a model on one of the tasks; export, verify and publish it.

    Parameters
    ----------
    task
        What to learn. watch: which of 7 exercises a watch wearer is doing, at every step.
    settings
        How to train.
    baseline
        Train the feed-forward network of the same width too, to compare.
    resume
        Go on with a run that was interrupted.
    publish
        Put the model into the repository, if it verifies.
    name
        Name of the model; else that of the task.
    models
        Model repository: a folder of <name>/<version>/model.onnx.
    runs
        Folder of the runs: settings, checkpoints, figures, and the recordings held out.
    """
    console = _console()
    repository = models if publish else None
    _commands(console).train(console, task, settings, runs, repository, name=name, baseline=baseline, resume=resume)


def export(
    run: Path,
    *,
    models: Path = _MODELS,
    name: str = "",
    version: str = "",
    gates: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Export a trained model to ONNX, verify it and publish it.

    Parameters
    ----------
    run
        The folder of a run, for its best weights, or a checkpoint file.
    models
        Model repository: a folder of <name>/<version>/model.onnx.
    name
        Name of the model; else that of its task.
    version
        Version; else one above the highest number there is.
    gates
        With the gates of an LSTM (f, i, c_tilde, o and c of each step) as further outputs.
    """
    console = _console()
    _commands(console).export(console, run, models, name=name, version=version, gates=gates)


def verify(model: Path, *, checkpoint: Path | None = None) -> None:
    """Prove that a model answers alike step by step, in chunks and whole, alone and in a batch.

    Parameters
    ----------
    model
        The ONNX file.
    checkpoint
        The run folder or checkpoint that it was exported from, to compare with PyTorch as well.
    """
    console = _console()
    _commands(console).verify(console, model, checkpoint)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _commands(console: Console) -> ModuleType:
    with console.status("Loading PyTorch ..."):
        from recurra_training import commands  # noqa: PLC0415  # takes seconds

    return commands
