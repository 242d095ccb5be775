"""A small line plot made of braille characters: each cell holds 2 x 4 dots."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

_BLANK: Final = 0x2800
# The bit of each dot, by row and column within its cell (Unicode block U+2800).
_BITS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_SCALE_WIDTH: Final = 10


def line_plot(lines: Sequence[NDArray[np.float64]], colors: Sequence[str], *, width: int, height: int) -> Text:
    """Lines over the same steps, each in its colour, with a scale at the left; NaN leaves a gap.

    Args:
        lines: Each of shape [steps].
        colors: One for each line.
        width: Of the whole, in characters.
        height: In lines of text.
    """
    columns = width - _SCALE_WIDTH
    known = np.concatenate(lines) if lines else np.empty(0)
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    cells = np.zeros((height, columns), np.int64)
    owner = np.full((height, columns), -1)
    for index, line in enumerate(lines):
        for x, y in _dots(line, low, high, columns * 2, height * 4):
            cells[y // 4, x // 2] |= _BITS[y % 4][x % 2]
            owner[y // 4, x // 2] = index
    plot = Text()
    for row in range(height):
        at = {0: high, height // 2: (low + high) / 2, height - 1: low}.get(row)
        plot.append(f"{at:>8.4g} ┤" if at is not None else " " * 9 + "│", "dim")
        for column in range(columns):
            dots = int(cells[row, column])
            plot.append(chr(_BLANK + dots) if dots else " ", colors[owner[row, column]] if dots else "")
        plot.append("\n")
    plot.rstrip()
    return plot


def _dots(line: NDArray[np.float64], low: float, high: float, width: int, height: int) -> list[tuple[int, int]]:
    """The dots of a line: between neighbouring steps, all that a straight line touches."""
    dots: list[tuple[int, int]] = []
    scaled = (height - 1) * (1 - (line - low) / (high - low))
    xs = np.linspace(0, width - 1, max(len(line), 2))
    for step in range(len(line)):
        if not np.isfinite(scaled[step]):
            continue
        following = step + 1 if step + 1 < len(line) and np.isfinite(scaled[step + 1]) else step
        count = int(max(abs(xs[following] - xs[step]), abs(scaled[following] - scaled[step]))) + 1
        for part in np.linspace(0, 1, count, endpoint=False):
            x = xs[step] + part * (xs[following] - xs[step])
            y = scaled[step] + part * (scaled[following] - scaled[step])
            dots.append((round(x), round(y)))
    return dots
