"""How pictures look."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

mpl.use("agg")
from matplotlib import pyplot

# Told apart by people who do not see all colours too (after Okabe and Ito, 2008). A network has one colour everywhere.
COLORS: Final = {
    "ffnn": "#8a8a8a",
    "rnn": "#d55e00",
    "rnn-relu": "#cc79a7",
    "gru": "#009e73",
    "lstm": "#0072b2",
}
OTHERS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
DPI: Final = 150
INK: Final = "#222222"
PALE: Final = "#c8c8c8"

_STYLE: Final[Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": DPI,
    "font.size": 9.5,
    "grid.color": "#ececec",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}


def color(name: str) -> str:
    """The colour of a network; pale for what is none."""
    return COLORS.get(name, PALE)


def log_if_wide(axis: Axes) -> None:
    """A logarithmic scale upwards where the lines span more than a power of ten."""
    low, high = axis.get_ylim()
    shown = np.concatenate([np.asarray(line.get_ydata(), float) for line in axis.get_lines()] or [np.ones(1)])
    positive = shown[np.isfinite(shown) & (shown > 0)]
    if len(positive) and positive.max() > 10 * positive.min():
        axis.set_yscale("log")
    elif high > low > 0 and low > 0.3 * high:
        axis.set_ylim(0, high)


def epochs_below(axis: Axes) -> None:
    """Whole numbers for the epochs, however few."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch")


@contextmanager
def picture(
    path: Path, *, columns: int = 1, rows: int = 1, size: tuple[float, float] = (7.5, 3.6), **options: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A picture of some axes, written to a PNG when the `with` block ends."""
    with pyplot.rc_context(_STYLE):
        figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)
        try:
            yield figure, list(axes.ravel())
            figure.savefig(path, bbox_inches="tight")
        finally:
            pyplot.close(figure)
