"""Pictures of how networks have learnt."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from recurra_training.data.recording import Recording
from recurra_training.data.task import Measure
from recurra_training.experiment import Experiment
from recurra_training.fit import HISTORY, Run
from recurra_training.labels import label
from recurra_training.models import Network
from recurra_training.report.style import OTHERS, color, epochs_below, log_if_wide, picture
from recurra_training.seq2seq import EncoderDecoder
from recurra_training.studies.gradients import gradient_by_lag

_LONGEST_LAG: Final = 200


def read_history(run: Run) -> dict[str, list[float]]:
    """The figures of every epoch, by name."""
    with (run.folder / HISTORY).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def draw_curves(path: Path, experiment: Experiment) -> None:
    """Loss on the training recordings and figure on the validation recordings, by epoch."""
    measure = experiment.task.measure
    with picture(path, columns=2, size=(10, 3.6)) as (_, (left, right)):
        for cell, runs in experiment.runs.items():
            histories = [read_history(run) for run in runs]
            for axis, name in ((left, "train_loss"), (right, f"validation_{measure.name}")):
                _draw_seeds(axis, [history[name] for history in histories], cell)
        left.set(title="Loss in training", ylabel="loss")
        epochs_below(left)
        epochs_below(right)
        log_if_wide(left)
        if not experiment.task.is_classes:
            left.set_ylabel("loss (squared error in units of its variance)")
        right.set(title="On the validation recordings", ylabel=title_of(measure))
        if measure.name == "mse":
            log_if_wide(right)
        if measure.unit == "%":
            low, high = right.get_ylim()
            right.set_ylim(max(low, 0), min(high, 1))
            right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        left.legend()


def _draw_seeds(axis: Axes, lines: Sequence[Sequence[float]], cell: str) -> None:
    """The mean over the seeds, as far as all of them go, and pale behind it each of them."""
    if len(lines) > 1:
        for line in lines:
            axis.plot(range(1, len(line) + 1), line, color=color(cell), alpha=0.22, linewidth=0.9)
    common = min(map(len, lines))
    mean = np.mean([line[:common] for line in lines], axis=0)
    axis.plot(range(1, common + 1), mean, color=color(cell), label=label(cell), marker="o" if common == 1 else "")


def title_of(measure: Measure) -> str:
    """What a figure is, with its unit."""
    return measure.title + (f" ({measure.unit})" if measure.unit not in ("", "%") else "")


def draw_gradients(path: Path, experiment: Experiment, best: Run) -> None:
    """The gradient's norm by layer while the best network learnt, and by lag when the networks had learnt."""
    history = read_history(best)
    layers = [name for name in history if name.startswith("gradient_")]
    with picture(path, columns=2, size=(10, 3.6)) as (_, (left, right)):
        marker = "o" if len(history["epoch"]) == 1 else ""
        for index, name in enumerate(layers):
            left.plot(
                history["epoch"],
                history[name],
                color=OTHERS[index % len(OTHERS)],
                label=_layer(name),
                marker=marker,
            )
        left.set(
            title=f"Gradient by layer, {label(best.trained.facts['cell'])}",
            ylabel="norm before clipping (mean of an epoch)",
        )
        epochs_below(left)
        log_if_wide(left)
        left.legend()
        lags = lag_curves(experiment)
        for cell, norms in lags.items():
            right.plot(
                np.arange(len(norms)), norms, color=color(cell), label=label(cell), marker="" if len(norms) > 1 else "o"
            )
        top = max((float(norms.max()) for norms in lags.values()), default=1.0)
        right.set(
            title="How far back an answer looks",
            xlabel="steps before the answer",
            ylabel="gradient of the answer by what was read",
            yscale="log",
            ylim=(top * 1e-8, top * 3),
        )
        if lags:
            right.legend()


def _layer(name: str) -> str:
    """A layer for people, counted from 1."""
    words, _, number = name.removeprefix("gradient_").partition("_l")
    return f"{words}, layer {int(number) + 1}" if number else words


def lag_curves(experiment: Experiment) -> Mapping[str, NDArray[np.float64]]:
    """For each kind of network, the gradient by lag of its first run, on test recordings of about average length."""
    recordings = experiment.task.split().test
    x = even_batch(recordings)
    curves: dict[str, NDArray[np.float64]] = {}
    for cell, runs in experiment.runs.items():
        network = runs[0].trained.network
        if isinstance(network, Network) and not isinstance(network, EncoderDecoder):
            norms = gradient_by_lag(network, x)
            curves[cell] = norms[:1] if cell == "ffnn" else norms
    return curves


def even_batch(recordings: Sequence[Recording], rows: int = 32) -> torch.Tensor:
    """Some recordings that are long, all cut to one length: `[rows, T, ...]`."""
    longest = sorted(recordings, key=lambda recording: -len(recording.x))[:rows]
    steps = min(_LONGEST_LAG, *(len(recording.x) for recording in longest))
    return torch.from_numpy(np.stack([recording.x[:steps] for recording in longest]))
