"""`recurra stream --plot`: the course of a session as a picture."""

from pathlib import Path
from typing import Any

import numpy as np

from recurra_client.cli.track import UNKNOWN, Track
from recurra_client.cli.usererror import UserError
from recurra_client.cli.view import color


def require_matplotlib(option: str) -> None:
    """Say so in one line, before anything is streamed, if the picture could not be drawn.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401, PLC0415 - heavy, and optional
    except ImportError:
        raise UserError(f"{option} needs matplotlib: pip install matplotlib") from None


def save_plot(path: Path, title: str, tracks: list[Track]) -> None:
    """Draw the sessions below one another into a PNG, SVG or PDF file."""
    import matplotlib  # noqa: PLC0415

    matplotlib.use("agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(
        len(tracks), 1, figsize=(11, 1.2 + 2.4 * len(tracks)), squeeze=False, layout="constrained"
    )
    for axis, track in zip(axes[:, 0], tracks, strict=True):
        (_draw_classes if track.reading.is_classes else _draw_values)(axis, track)
        score = f", {track.score_name} {track.score_text()}" if track.score_text() else ""
        axis.set_title(f"{track.name}: {track.steps:,} steps{score}", loc="left", fontsize=10)
    axes[-1, 0].set_xlabel("step")
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {error}") from None
    finally:
        pyplot.close(figure)


def _draw_classes(axis: Any, track: Track) -> None:
    values, truth = track.values(), track.true_classes()
    steps = np.arange(1, track.steps + 1)
    axis.stackplot(
        steps,
        values.T,
        colors=[color(i) for i in range(values.shape[1])],
        labels=track.reading.labels,
        alpha=0.9,
        linewidth=0,
    )
    if (truth != UNKNOWN).any():
        for index in np.unique(truth[truth != UNKNOWN]):
            axis.fill_between(steps, 1.03, 1.13, where=truth == index, color=color(int(index)), step="mid", linewidth=0)
        axis.text(steps[0], 1.145, "true", fontsize=7, va="bottom")
    axis.set_ylim(0, 1.22)
    axis.set_yticks([0, 0.5, 1])
    axis.set_ylabel("probability")
    axis.margins(x=0)
    axis.legend(loc="center left", bbox_to_anchor=(1.005, 0.5), fontsize=7, frameon=False)


def _draw_values(axis: Any, track: Track) -> None:
    steps = np.arange(1, track.steps + 1)
    truth = track.truth()
    if not np.isnan(truth).all():
        axis.plot(steps, truth, color="0.5", linewidth=1, label="true")
    for index, line in enumerate(track.values().T[:4]):
        axis.plot(steps, line, color=color(index), linewidth=1, label=track.reading.labels[index])
    axis.set_ylabel(track.reading.unit)
    axis.margins(x=0)
    axis.legend(loc="center left", bbox_to_anchor=(1.005, 0.5), fontsize=7, frameon=False)
