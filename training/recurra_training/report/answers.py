"""Pictures of what a network answers to recordings that it has not been trained on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor, nn

from recurra_training import metrics
from recurra_training.data.recording import Recording
from recurra_training.data.segments import Segment
from recurra_training.data.task import Task
from recurra_training.labels import label
from recurra_training.report.style import INK, color, picture

_MOST_CLASSES: Final = 15
_MOST_STEPS: Final = 240
_ENOUGH: Final = 2000

Draw = Callable[[Path], str]
"""Draws a picture at a path, and says what it shows."""


def pictures_of(task: Task, network: nn.Module, cell: str, recordings: Sequence[Recording]) -> dict[str, Draw]:
    """The pictures that suit a task, by the name of their file."""
    found = metrics.answers(network, recordings[:_ENOUGH])
    if not task.is_classes:
        once = recordings[0].asked is not None and recordings[0].asked.sum() == 1
        draw = _scatter if once else _forecast
        return {"answers": lambda path: draw(path, task, cell, found)}
    made: dict[str, Draw] = {}
    if len(task.output.labels) <= _MOST_CLASSES and not task.source_tokens:
        made["confusion"] = lambda path: _confusion(path, task, found)
    if task.tokens and not task.source_tokens:
        made["answers"] = lambda path: _next_tokens(path, task, found)
    elif not task.source_tokens:
        made["answers"] = lambda path: _probabilities(path, task, found)
    return made


def _asked(found: Sequence[tuple[Tensor, Segment]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """All answers `[steps, outputs]`, and what is true `[steps, ...]`, where an answer was asked for."""
    answers = torch.cat([y[segment.mask] for y, segment in found])
    return answers.numpy(), torch.cat([segment.target[segment.mask] for _, segment in found]).numpy()


def _confusion(path: Path, task: Task, found: Sequence[tuple[Tensor, Segment]]) -> str:
    answers, truth = _asked(found)
    labels = task.output.labels
    counts = np.zeros((len(labels), len(labels)))
    np.add.at(counts, (truth.astype(int), answers.argmax(1)), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 3.2 + 0.45 * len(labels)
    with picture(path, size=(size + 1.2, size)) as (_, (axis,)):
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(shares.shape):
            if shares[row, column] >= 0.005:
                ink = "white" if shares[row, column] > 0.55 else INK
                axis.text(column, row, f"{shares[row, column]:.0%}", ha="center", va="center", color=ink, fontsize=8.5)
        axis.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(labels)), labels)
        axis.set(title="What is taken for what", xlabel="answered", ylabel="true")
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
    return "Each row is a class, and adds up to 100%: how often it is taken for which."


def _forecast(path: Path, task: Task, cell: str, found: Sequence[tuple[Tensor, Segment]]) -> str:
    """The stretch of a recording that moves most."""
    y, segment = found[0]
    lengths = segment.mask.sum(1)
    moved = [float(segment.target[row][segment.mask[row]].std()) if lengths[row] else 0.0 for row in range(len(y))]
    row = int(np.argmax(moved))
    steps = slice(int(segment.mask[row].int().argmax()), None)
    keep = segment.mask[row][steps]
    answer = y[row][steps][keep][:_MOST_STEPS].numpy()
    truth = segment.target[row][steps][keep][:_MOST_STEPS].numpy()
    now = segment.x[row][steps][keep][:_MOST_STEPS, 0].numpy()
    unit = task.output.units[0] if task.output.units else ""
    when, title = _times(task, len(truth))
    labels = task.output.labels or ("value",)
    with picture(path, rows=len(labels), size=(10, 1.0 + 2.5 * len(labels)), sharex=True) as (_, axes):
        for index, (axis, name) in enumerate(zip(axes, labels, strict=True)):
            axis.plot(when, truth[:, index], color=INK, linewidth=1.4, label="true")
            axis.plot(when, now, color="#bbbbbb", linewidth=1.2, linestyle="--", label="persistence: as it is now")
            axis.plot(when, answer[:, index], color=color(cell), label=f"answered ({label(cell)})")
            axis.set(title=name.replace("_", " "), ylabel=unit)
        axes[0].legend(ncols=3, loc="upper left", bbox_to_anchor=(0.2, 1.2))
        axes[-1].set_xlabel(title)
    return "A test recording that moves much: each line is what was said, at that moment, of a later one."


def _times(task: Task, steps: int) -> tuple[NDArray[np.floating], str]:
    """When each step is, and in what unit."""
    if not task.step_seconds:
        return np.arange(1, steps + 1, dtype=np.float64), "step"
    for seconds, unit in ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds")):
        if steps * task.step_seconds >= 5 * seconds:
            return np.arange(steps) * task.step_seconds / seconds, unit
    return np.arange(steps) * task.step_seconds, "seconds"


def _scatter(path: Path, task: Task, cell: str, found: Sequence[tuple[Tensor, Segment]]) -> str:
    answers, truth = _asked(found)
    with picture(path, size=(4.6, 4.4)) as (_, (axis,)):
        axis.plot([truth.min(), truth.max()], [truth.min(), truth.max()], color="#999999", linewidth=1)
        axis.scatter(truth[:, 0], answers[:, 0], s=5, alpha=0.35, color=color(cell), linewidths=0)
        name = task.output.labels[0] if task.output.labels else "value"
        axis.set(title="Answer against truth", xlabel=f"true {name}", ylabel=f"answered {name}", aspect="equal")
    return "A dot for each test sequence; on the line, the answer is right."


def _probabilities(path: Path, task: Task, found: Sequence[tuple[Tensor, Segment]]) -> str:
    """What is answered as a recording goes on, for a few of them."""
    y, segment = found[0]
    rows = np.linspace(0, len(y) - 1, min(4, len(y))).astype(int)
    # Where an answer is asked for once, what would have been answered before is worth seeing too.
    with picture(path, rows=len(rows), size=(10, 0.9 + 1.45 * len(rows)), sharex=True) as (figure, axes):
        for axis, row in zip(axes, rows, strict=True):
            steps = int(segment.mask[row].nonzero().max()) + 1
            shares = y[row, :steps].softmax(-1).numpy()
            when, title = _times(task, int(segment.mask.shape[1]))
            axis.stackplot(
                when[:steps], shares.T, labels=task.output.labels, colors=_colors(shares.shape[1]), linewidth=0
            )
            axis.set(
                title=f"true: {task.output.labels[int(segment.target[row, steps - 1])]}", ylim=(0, 1), yticks=(0, 1)
            )
            axis.grid(visible=False)
        axes[-1].set_xlabel(title)
        figure.supylabel("probability", fontsize=10)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")
    return "Test recordings from their beginning: how sure the network becomes, and of what."


def _colors(count: int) -> list[str]:
    palette = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#56b4e9", "#999999")
    return [palette[index % len(palette)] for index in range(count)]


def _next_tokens(path: Path, task: Task, found: Sequence[tuple[Tensor, Segment]]) -> str:
    """What may come next, after each token of a few recordings joined."""
    y, segment = found[0]
    row = int(segment.mask.sum(1).argmax())
    steps = int(segment.mask[row].sum())
    labels = task.output.labels
    shares = y[row, :steps].softmax(-1).numpy()
    used = [index for index in range(len(labels)) if shares[:, index].max() > 0.01]
    with picture(path, size=(0.45 * steps + 3, 0.2 * len(used) + 1.3)) as (figure, (axis,)):
        image = axis.imshow(shares[:, used].T, cmap="Blues", vmin=0, aspect="auto")
        for step in range(steps):
            true = int(segment.target[row, step])
            if true in used:
                axis.add_patch(_frame(step, used.index(true)))
        axis.set_xticks(range(steps), [task.input.labels[int(token)] for token in segment.x[row, :steps]])
        for tick in axis.get_xticklabels():
            if len(tick.get_text()) > 2:  # it would stand in the next one
                tick.set(rotation=40, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(used)), [labels[index] for index in used], fontsize=8)
        axis.set(title="What comes next?", xlabel="read so far, up to here", ylabel="next")
        axis.grid(visible=False)
        figure.colorbar(image, ax=axis, label="probability", fraction=0.05)
    return "A name of the test: after each letter, how likely each next one is. Framed: the one that came."


def _frame(column: int, row: int) -> Rectangle:
    return Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#d55e00", linewidth=1.3)
