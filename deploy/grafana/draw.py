"""Draws the dashboards without Grafana, from what a Prometheus has: `python -m deploy.grafana.draw --help`.

The panels, their places and their queries are those of the dashboards; the style is Grafana's dark one, roughly.
"""

import json
import math
import re
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cyclopts import App
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, MultipleLocator, NullLocator
from numpy.typing import NDArray

DASHBOARDS = Path(__file__).with_name("dashboards")
_BACK, _PANEL, _TEXT, _DIM, _GRID = "#111217", "#181b1f", "#ccccdc", "#8e8e9a", "#2c2f36"
_GREEN, _RED = "#73bf69", "#f2495c"
_LINES = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#37872d", "#8ab8ff", "#fade2a", "#a352cc")
_WIDTH = 24  # columns of a dashboard
_POINTS = 240
_UNIT = 0.36  # inches that a row of the grid is high
_MOST_LINES = 8

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """A Prometheus, and the time to draw: seconds since 1970; rates are taken over `over` seconds."""

    url: str
    begin: float
    end: float
    over: float

    def lines(self, target: dict[str, Any]) -> list[tuple[str, Array, Array]]:
        """The series of a panel's query: name, times and values."""
        step = max((self.end - self.begin) / _POINTS, 1.0)
        found = self._ask("query_range", query=self._expr(target), start=self.begin, end=self.end, step=step)
        lines = []
        for series in found:
            times, values = np.array(series["values"], float).T
            lines.append((_name(target["legendFormat"], series["metric"]), times, values))
        return lines

    def rows(self, target: dict[str, Any]) -> list[dict[str, str]]:
        """The labels of a table's query."""
        return [series["metric"] for series in self._ask("query", query=self._expr(target), time=self.end)]

    def _expr(self, target: dict[str, Any]) -> str:
        expr = target["expr"].replace("$__rate_interval", f"{self.over:.0f}s")
        return re.sub(r"\$(model|version|instance)", ".*", expr)

    def _ask(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:  # noqa: S310 - ours
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return result


def draw(dashboard: dict[str, Any], source: Source) -> Figure:
    """A dashboard as a picture."""
    panels = dashboard["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = Figure(figsize=(16, (height + 2) * _UNIT), facecolor=_BACK, dpi=100)
    figure.text(0.006, 1 - 0.5 / (height + 2), dashboard["title"], color=_TEXT, size=15, weight="bold", va="center")
    for panel in panels:
        place = panel["gridPos"]
        left, wide = place["x"] / _WIDTH, place["w"] / _WIDTH
        top, high = 1 - (place["y"] + 1.4) / (height + 2), place["h"] / (height + 2)
        if panel["type"] == "row":
            figure.text(left + 0.006, top - high / 2, f"⌄  {panel['title']}", color=_TEXT, size=12, va="center")
            continue
        inner = figure.add_axes((left + 0.003, top - high + 0.0015, wide - 0.006, high - 0.003), facecolor=_PANEL)
        inner.set(xticks=[], yticks=[])
        for spine in inner.spines.values():
            spine.set_color(_GRID)
        title = 0.45 / place["h"]
        inner.text(0.012, 1 - title, panel["title"], color=_TEXT, size=9, weight="bold", va="center")
        _KINDS[panel["type"]](inner, panel, source)
    return figure


# --- kinds of panels ---------------------------------------------------------------------


def _graph(panel_axes: Axes, panel: dict[str, Any], source: Source) -> None:
    lines = [line for target in panel["targets"] for line in source.lines(target)]
    lines = sorted(lines, key=lambda line: -float(np.nanmax(line[2], initial=0)))[:_MOST_LINES]
    field = panel["fieldConfig"]["defaults"]
    unit, logarithmic = field.get("unit", "short"), _is_logarithmic(field)
    line_high = 0.16 / (panel["gridPos"]["h"] * _UNIT)
    legend = line_high * (len(lines) + 1)
    axes = _plot_axes(panel_axes, panel, below=legend)
    for (_, times, values), color in zip(lines, _LINES, strict=False):
        axes.plot(times, values, color=color, lw=1.1)
        if not logarithmic:
            axes.fill_between(times, values, color=color, alpha=0.08, lw=0)
    if logarithmic:
        axes.set_yscale("log")
    else:
        high = max((float(np.nanmax(values, initial=0)) for _, _, values in lines), default=0)
        axes.set_ylim(0, high * 1.1 or 1)
        _shade(axes, field)
    _dress(axes, source, unit)
    columns = (0.82, 0.985)
    for right, title in zip(columns, ("last", "max"), strict=True):
        panel_axes.text(right, legend - line_high * 0.2, title, color=_DIM, size=6.5, va="center", ha="right")
    for place, ((name, _, values), color) in enumerate(zip(lines, _LINES, strict=False)):
        down = legend - line_high * (place + 1)
        known = values[~np.isnan(values)]
        panel_axes.text(0.02, down, "━", color=color, size=8, va="center")
        panel_axes.text(0.055, down, name, color=_TEXT, size=7.5, va="center")
        newest = (known[-1], known.max()) if len(known) else (math.nan, math.nan)
        for right, number in zip(columns, newest, strict=True):
            panel_axes.text(right, down, _shown(float(number), unit), color=_TEXT, size=7.5, va="center", ha="right")


def _number(panel_axes: Axes, panel: dict[str, Any], source: Source) -> None:
    (line,) = source.lines(panel["targets"][0]) or [("", np.array([]), np.array([]))]
    _, times, values = line
    known = values[~np.isnan(values)]
    field = panel["fieldConfig"]["defaults"]
    last = float(known[-1]) if len(known) else math.nan
    color = _RED if any(last >= red for red in _reds(field)) else _GREEN
    axes = panel_axes.inset_axes((0, 0, 1, 0.4), facecolor=_PANEL)
    axes.axis("off")
    axes.fill_between(times, values, color=color, alpha=0.25, lw=0)
    axes.plot(times, values, color=color, lw=1)
    axes.set_xlim(source.begin, source.end)
    axes.set_ylim(0, (max(known, default=0)) * 1.1 or 1)
    shown = _shown(last, field.get("unit", "short")) if len(known) else "none"
    panel_axes.text(0.5, 0.55, shown, color=color, size=22, weight="bold", ha="center", va="center")


def _table(panel_axes: Axes, panel: dict[str, Any], source: Source) -> None:
    rows = source.rows(panel["targets"][0])
    columns = [name for name in sorted({name for row in rows for name in row}) if name not in ("__name__", "job")]
    step = 1 / max(len(columns), 1)
    for place, column in enumerate(columns):
        panel_axes.text(0.012 + place * step, 0.78, column, color=_LINES[7], size=8, weight="bold", va="center")
        for down, row in enumerate(rows[:6]):
            text = row.get(column, "")
            room = int(105 * step * panel["gridPos"]["w"] / _WIDTH) * 2
            shown = text if len(text) <= room else f"{text[: max(room - 1, 1)]}…"
            panel_axes.text(0.012 + place * step, 0.66 - 0.115 * down, shown, color=_TEXT, size=8, va="center")


def _heatmap(panel_axes: Axes, panel: dict[str, Any], source: Source) -> None:
    axes = _plot_axes(panel_axes, panel, below=0)
    lines = sorted(source.lines(panel["targets"][0]), key=lambda line: float(line[0]))
    times = np.unique(np.concatenate([line[1] for line in lines]))
    cumulative = np.array([np.interp(times, line[1], line[2], left=0) for line in lines])
    counts = np.diff(cumulative, axis=0, prepend=0)[:-1]
    bounds = np.array([float(line[0]) for line in lines[:-1]])
    edges = np.concatenate([[bounds[0] / 2], bounds])
    seen = np.where(counts > 1e-3, counts, np.nan)
    widths = np.concatenate([times, [times[-1] + 1]])
    axes.pcolormesh(widths, edges, seen, cmap="Oranges_r", norm=LogNorm(), shading="flat")
    used = bounds[np.nansum(np.nan_to_num(seen), axis=1) > 0]
    axes.set_yscale("log")
    axes.set_ylim(edges[0], max(used, default=bounds[-1]) * 1.2)
    _dress(axes, source, "s")


_KINDS = {"timeseries": _graph, "stat": _number, "table": _table, "heatmap": _heatmap}


# --- details -----------------------------------------------------------------------------


def _plot_axes(panel_axes: Axes, panel: dict[str, Any], *, below: float) -> Axes:
    """Where lines are drawn, with room for the title, the labels of the axes, and a legend."""
    wide, high = 16 * panel["gridPos"]["w"] / _WIDTH, panel["gridPos"]["h"] * _UNIT  # inches
    left, bottom, top = 0.55 / wide, below + 0.22 / high, 0.36 / high
    return panel_axes.inset_axes((left, bottom, 0.985 - left, 1 - bottom - top), facecolor=_PANEL)


def _is_logarithmic(field: dict[str, Any]) -> bool:
    return bool(field.get("custom", {}).get("scaleDistribution", {}).get("type") == "log")


def _dress(axes: Axes, source: Source, unit: str) -> None:
    axes.set_xlim(source.begin, source.end)
    axes.grid(color=_GRID, lw=0.6)
    axes.tick_params(colors=_DIM, labelsize=7, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, prune="both"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: time.strftime("%H:%M:%S", time.gmtime(at))))
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(_ticks(axes, unit))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: re.sub(r" (ops|req)/s$", "", _shown(value, unit))))
    axes.yaxis.set_minor_locator(NullLocator())
    for spine in axes.spines.values():
        spine.set_visible(False)


def _ticks(axes: Axes, unit: str) -> Locator:
    """Round numbers; of bytes, powers of two."""
    if axes.get_yscale() == "log":
        return LogLocator(base=4, numticks=6) if unit == "bytes" else LogLocator(subs=(1.0, 2.0, 5.0), numticks=8)
    if unit == "bytes":
        return MultipleLocator(2 ** math.ceil(math.log2(axes.get_ylim()[1] / 4)))
    return MaxNLocator(5)


def _shade(axes: Axes, field: dict[str, Any]) -> None:
    for red in _reds(field):
        low, high = axes.get_ylim()
        if high > red:
            axes.axhspan(red, high, color=_RED, alpha=0.1, lw=0)
            axes.set_ylim(low, high)


def _reds(field: dict[str, Any]) -> list[float]:
    return [step["value"] for step in field.get("thresholds", {}).get("steps", ()) if step["color"] == "red"]


def _name(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label[1], ""), legend)


def _shown(value: float, unit: str) -> str:
    """A number in a Grafana unit."""
    if math.isnan(value):
        return ""
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    if unit == "s":
        for name, size in (("s", 1.0), ("ms", 1e-3)):
            if value >= size or not value:
                return f"{value / size:.3g} {name}"
        return f"{value * 1e6:.3g} µs"
    if unit == "bytes":
        power = min(int(math.log(value, 1024)), 4) if value >= 1 else 0
        return f"{value / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
    suffix = {"reqps": " req/s", "ops": " ops/s"}.get(unit, "")
    return f"{value:.3g}{suffix}" if abs(value) < 1e3 else f"{value / 1e3:.3g}K{suffix}"


app = App(help="Draw the dashboards from what a Prometheus has.")


@app.default
def main(folder: Path, *, prometheus: str = "http://localhost:9090", minutes: float = 15, over: float = 60) -> None:
    """Write a picture of each dashboard into a folder.

    Parameters
    ----------
    folder
        Where.
    prometheus
        URL of the Prometheus.
    minutes
        How far back from now.
    over
        Seconds that rates are taken over: at least four times the scrape interval.
    """
    now = time.time()
    draw_all(folder, Source(prometheus, now - 60 * minutes, now, over))


def draw_all(folder: Path, source: Source) -> None:
    """Write a picture of each dashboard into a folder, as `<uid>.png`."""
    mpl.rcParams["font.family"] = ["DejaVu Sans"]
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(DASHBOARDS.glob("*.json")):
        figure = draw(json.loads(path.read_text()), source)
        figure.savefig(folder / f"{path.stem}.png", facecolor=_BACK)


if __name__ == "__main__":
    app()
