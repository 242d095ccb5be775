"""The commands `recurra train`, `recurra export` and `recurra verify`: their options.

What they do stands in `commands`, which is imported when a command runs: its help must not wait for PyTorch.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Final, Literal, cast, get_args

from cyclopts import Parameter, Token, validators
from rich.console import Console

from recurra_training.cells import Cell
from recurra_training.settings import Changes
from recurra_training.source import TableSource

_NO_CHANGES: Final = Changes()
_NO_SOURCE: Final = TableSource()
_MODELS: Final = Path("models")
_RUNS: Final = Path("runs")


_Tolerance = Annotated[float, Parameter(validator=validators.Number(gt=0))]
_TOLERANCE: Final = 1e-5


def split_commas(_kind: Any, tokens: Sequence[Token]) -> list[Cell]:
    """Take a,b,c for three words."""
    words = [word for token in tokens for word in token.value.split(",")]
    if wrong := [word for word in words if word not in get_args(Cell)]:
        raise ValueError(f"{wrong[0]!r} is no kind of network; there are {', '.join(get_args(Cell))}")
    return cast("list[Cell]", words)


_Cells = Annotated[list[Cell], Parameter(converter=split_commas, negative="")]


def train(
    task: Literal["watch", "watch-once", "adding", "glucose", "surnames", "dates", "stocks"] | None = None,
    *,
    source: TableSource = _NO_SOURCE,
    config: Path | None = None,
    cells: _Cells | None = None,
    seeds: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 1,
    changes: Changes = _NO_CHANGES,
    resume: Annotated[bool, Parameter(negative="")] = False,
    publish: bool = True,
    name: str = "",
    models: Path = _MODELS,
    runs: Path = _RUNS,
) -> None:
    """Train models on a task or on your own data; export, verify and publish the best.

    Parameters
    ----------
    task
        What to learn. watch, watch-once: which of 7 exercises a watch wearer is doing, at every step or once at the
        end. adding: a sum whose terms lie far apart. glucose: blood sugar 30 and 60 minutes ahead. surnames: the next
        letter of a name. dates: "March 5, 1993" to "1993-03-05". stocks: tomorrow's share price.
    source
        Own data.
    config
        config.yaml of a run to be repeated; flags change it.
    cells
        Kinds of network, separated by commas: ffnn (no memory), rnn, rnn-relu, gru, lstm. Else what suits the task.
    seeds
        Runs of each kind, with the seeds that follow --seed; each judges by the next of the task's splits.
    changes
        How to train, where it is to differ from what suits the task.
    resume
        Go on with a run that was interrupted.
    publish
        Put the best model into the repository, if it verifies.
    name
        Name of the model; else that of the task.
    models
        Model repository: a folder of <name>/<version>/model.onnx.
    runs
        Folder of the runs: settings, checkpoints, figures, and some of the recordings held out.
    """
    console = _console()
    repository = models if publish else None
    _commands(console).train(
        console,
        task or "",
        source,
        config,
        changes,
        runs,
        repository,
        cells=cells or (),
        seeds=seeds,
        name=name,
        resume=resume,
    )


def export(
    run: Path,
    *,
    models: Path = _MODELS,
    name: str = "",
    version: str = "",
    gates: Annotated[bool, Parameter(negative="")] = False,
    precision: Literal["float32", "float16", "int8"] = "float32",
    tolerance: _Tolerance = _TOLERANCE,
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
    precision
        Of the weights. float16: half the size. int8: a quarter, and a faster LSTM; needs a larger tolerance.
    tolerance
        Largest difference between the ways to run it that is still published.
    """
    console = _console()
    _commands(console).export(
        console, run, models, name=name, version=version, gates=gates, precision=precision, tolerance=tolerance
    )


def verify(model: Path, checkpoint: Path, *, tolerance: float) -> None:
    """Prove also that a model is the network of a run folder or checkpoint."""
    console = _console()
    _commands(console).verify(console, model, checkpoint, tolerance=tolerance)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _commands(console: Console) -> ModuleType:
    with console.status("Loading PyTorch ..."):
        from recurra_training import commands  # noqa: PLC0415  # takes seconds

    return commands
