"""A picture of the gates over a whole sequence."""

from pathlib import Path
from typing import Any

import numpy as np

from recurra_client.cli.gates import GATES, GateTrack, order
from recurra_client.cli.track import UNKNOWN, Track
from recurra_client.cli.usererror import UserError
from recurra_client.cli.view import color


def save_gates(path: Path, title: str, track: Track, gates: GateTrack) -> None:
    """Draw a heat map of every gate, a row for each unit and a column for each step, into a PNG, SVG or PDF file."""
    import matplotlib  # noqa: PLC0415 - heavy, and optional

    matplotlib.use("agg")
    from matplotlib import pyplot  # noqa: PLC0415

    heights = [0.16, *(1 for _ in GATES)] if track.reading.is_classes else [1 for _ in GATES]
    figure, axes = pyplot.subplots(
        len(heights), 1, figsize=(11, 10), sharex=True, layout="constrained", gridspec_kw={"height_ratios": heights}
    )
    steps, units = track.steps, order(gates)
    if track.reading.is_classes:
        _draw_classes(axes[0], track)
    for axis, gate in zip(axes[-len(GATES) :], GATES, strict=True):
        values = gates.values(gate.name)[:, units].T
        # A few units that count steps would leave the others pale.
        unbounded = np.isnan(gate.low)
        bound = max(float(np.percentile(np.abs(values), 97)), 1e-6) if unbounded else 1.0
        signed = gate.low != 0
        image = axis.imshow(
            values,
            aspect="auto",
            interpolation="nearest",
            cmap="RdBu_r" if signed else "viridis",
            vmin=-bound if signed else 0,
            vmax=bound,
            extent=(0.5, steps + 0.5, len(values), 0),
        )
        axis.set_title(f"{gate.title}: {gate.meaning}", loc="left", fontsize=10)
        axis.set_ylabel("unit", fontsize=9)
        axis.tick_params(labelsize=8)
        bar = figure.colorbar(image, ax=axis, fraction=0.03, pad=0.01, extend="both" if unbounded else "neither")
        bar.ax.tick_params(labelsize=8)
    axes[-1].set_xlabel("step   (units are sorted: those that keep their memory longest stand at the top)", fontsize=9)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {error}") from None
    finally:
        pyplot.close(figure)


def _draw_classes(axis: Any, track: Track) -> None:
    """A strip of what was predicted, and its legend."""
    classes = track.predicted_classes()
    true = track.true_classes()
    rows = [classes] if (true == UNKNOWN).all() else [true, classes]
    for row, values in enumerate(rows):
        edges = np.flatnonzero(np.diff(values)) + 1
        for start, end in zip([0, *edges], [*edges, len(values)], strict=True):
            axis.barh(row, end - start, left=start + 0.5, height=0.84, color=color(int(values[start])), linewidth=0)
    axis.set_yticks(range(len(rows)), ["predicted"] if len(rows) == 1 else ["true", "predicted"], fontsize=8)
    axis.invert_yaxis()
    shown = np.unique(np.concatenate(rows))
    handles = [axis.barh(0, 0, color=color(int(index))) for index in shown if index != UNKNOWN]
    names = [track.reading.labels[index] for index in shown if index != UNKNOWN]
    axis.legend(
        handles, names, ncols=4, fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.05), borderaxespad=0
    )
    for side in ("top", "right", "bottom", "left"):
        axis.spines[side].set_visible(False)
