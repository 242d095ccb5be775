"""Gates in the terminal, as heat maps of half blocks: two units a line, a step a column."""

from itertools import groupby
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.text import Text

from recurra_client.cli.gates import GATES, GateTrack, order

_SHARES: Final = {"c": 2}
"""Of the height, what a gate gets, where the others get 1."""
_MOST_LINES: Final = 3
"""Of a share: more tell little more."""
_LEVELS: Final = 16
"""Shades of a colour: few, so that neighbours are alike and a frame is quickly drawn."""
_DARK, _LIGHT = np.array([18, 22, 34]), np.array([255, 214, 102])
_BLUE, _RED = np.array([70, 150, 255]), np.array([255, 104, 80])


def gates_view(track: GateTrack, width: int, height: int) -> RenderableType:
    """The latest steps of every gate, units that remember longest at the top, in about so many lines."""
    parts: list[RenderableType] = []
    if not len(track.values("f", last=1)):
        return Text("no step yet", "dim")
    units = order(track)
    lines = (height - len(GATES)) // sum(_SHARES.get(gate.name, 1) for gate in GATES)
    rows = 2 * min(max(lines, 1), _MOST_LINES)
    for gate in GATES:
        values = track.values(gate.name, last=width)
        mean = f"  mean {values[-1].mean():.2f}" if gate.low == 0 else f"  largest {np.abs(values[-1]).max():.2f}"
        parts.append(Text.assemble((gate.title, "bold"), (f"  {gate.meaning}", "dim"), (mean, "dim")))
        parts.append(heat_map(values[:, units], rows * _SHARES.get(gate.name, 1), signed=gate.low != 0))
    return Group(*parts)


def heat_map(values: NDArray[np.float32], rows: int, *, signed: bool) -> Text:
    """Values `[steps, units]` as `rows` rows of colour, half a line each; of more units, some are shown.

    From 0 to 1 they go from dark to light; with a sign, from blue over dark to red, at full strength from where only
    a few are larger.
    """
    rows = min(rows, values.shape[1])
    shown = values[:, np.linspace(0, values.shape[1] - 1, rows).astype(int)].T
    shades = _signed(shown) if signed else _shade(shown[..., None].clip(0, 1), _LIGHT)
    if rows % 2:
        shades = np.concatenate([shades, np.broadcast_to(_DARK, (1, *shades.shape[1:]))])
    text = Text()
    for upper, lower in zip(shades[::2], shades[1::2], strict=True):
        styles = (f"{_rgb(above)} on {_rgb(below)}" for above, below in zip(upper, lower, strict=True))
        for style, alike in groupby(styles):
            text.append("▀" * len(list(alike)), style)
        text.append("\n")
    text.rstrip()
    return text


def _signed(values: NDArray[np.float32]) -> NDArray[np.float64]:
    strength = (np.abs(values) / max(float(np.percentile(np.abs(values), 97)), 1e-6)).clip(0, 1)[..., None]
    return np.where(values[..., None] > 0, _shade(strength, _RED), _shade(strength, _BLUE))


def _shade(strength: NDArray[np.float32], full: NDArray[np.int64]) -> NDArray[np.float64]:
    shades: NDArray[np.float64] = _DARK + np.round(strength * _LEVELS) / _LEVELS * (full - _DARK)
    return shades


def _rgb(color: NDArray[np.float64]) -> str:
    red, green, blue = (round(float(part)) for part in color)
    return f"#{red:02x}{green:02x}{blue:02x}"
