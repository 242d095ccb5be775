"""The findings as pictures."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import matplotlib.ticker
from matplotlib.figure import Figure

from benchmarks import knee_plot
from benchmarks.parts import options, paced, scale, sequences, steps
from benchmarks.runs import Figures, Findings, Spread

_OURS: Final = "tab:blue"
_OTHERS: Final = "0.7"
_STYLE: Final[dict[Any, Any]] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "font.size": 10,
}
Curves = Mapping[str, list[tuple[float, Mapping[str, Spread]]]]


def draw(findings: Findings, folder: Path) -> list[Path]:
    """Draw what there are figures for: the files written."""
    drawn = []
    with mpl.rc_context(_STYLE):
        if figures := findings.of(steps.PEERS):
            drawn.append(_save(_at_a_glance(figures), folder / "at_a_glance.png"))
        for part, title in (
            (steps.LIMIT, "Single steps, LSTM-128, closed loop"),
            (sequences.PERF_ANALYZER, "Sequences over ModelStreamInfer, LSTM-128, perf_analyzer"),
            (steps.PEERS, "Single steps, LSTM-128, closed loop, beside the peers"),
        ):
            if curves := _curves(findings, part):
                drawn.append(_save(_against_sessions(curves, title), folder / f"{part}.png"))
        if findings.of(paced.PART):
            drawn.append(_save(knee_plot.draw(findings), folder / "paced.png"))
        if curves := _curves(findings, scale.PART):
            title = "LSTM-128, 1,000 of the open sessions stepped"
            drawn.append(_save(_rates(curves, title, "open sessions", "log"), folder / f"{scale.PART}.png"))
        if curves := _by_workers(findings):
            title = "LSTM-512x2, 64 sessions"
            drawn.append(_save(_rates(curves, title, "workers", "linear"), folder / f"{options.WORKERS}.png"))
    return drawn


def _at_a_glance(figures: Figures) -> Figure:
    """All servers, best first: how much they do for many callers, and how soon they answer a single one."""
    most = max((case for _, case in figures), key=int)
    rates = {name: values["steps_per_second"] for (name, case), values in figures.items() if case == most}
    waits = {name: values["p50"] for (name, case), values in figures.items() if case == "1"}
    figure = Figure(figsize=(11, 0.8 + 0.42 * max(len(rates), len(waits))), layout="constrained")
    figure.suptitle("The same LSTM behind each server, one step a message (medians, with the range of the rounds)")
    left, right = figure.subplots(1, 2)
    _ranked(left, rates, 1, f"steps a second, {most} callers at once (more is better)", reverse=True)
    _ranked(right, waits, 1e3, "ms until an answer, one caller, p50 (less is better)", reverse=False)
    return figure


def _ranked(axes: Any, spreads: Mapping[str, Spread], scale_by: float, label: str, *, reverse: bool) -> None:
    """Horizontal bars with their figures, the best on top."""
    ranked = sorted(spreads.items(), key=lambda item: item[1].median, reverse=reverse)[::-1]
    names = [name for name, _ in ranked]
    values = [spread.median * scale_by for _, spread in ranked]
    low = [(spread.median - spread.low) * scale_by for _, spread in ranked]
    high = [(spread.high - spread.median) * scale_by for _, spread in ranked]
    colors = [_OURS if name == "recurra" else _OTHERS for name in names]
    bars = axes.barh(names, values, xerr=[low, high], color=colors, ecolor="0.35", height=0.7)
    axes.bar_label(bars, [f"{value:,.0f}" if value >= 100 else f"{value:.2g}" for value in values], padding=4)
    axes.margins(x=0.15)
    axes.set_xlabel(label)
    axes.grid(visible=False)
    axes.set_xticks([])  # the bars tell their figures
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False)


def _curves(findings: Findings, part: str) -> Curves:
    """By name: the figures at each number of sessions, in order."""
    curves: dict[str, list[tuple[float, Mapping[str, Spread]]]] = defaultdict(list)
    for (name, case), values in findings.of(part).items():
        curves[name].append((float(case), values))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in curves.items()}


def _by_workers(findings: Findings) -> Curves:
    """One curve over the number of workers, which begins the name."""
    figures = findings.of(options.WORKERS)
    points = [(float(name.split()[0]), values) for (name, case), values in figures.items() if case == "64"]
    return {"recurra": sorted(points, key=lambda point: point[0])} if points else {}


def _against_sessions(curves: Curves, title: str) -> Figure:
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    figure.suptitle(title)
    rate, p50, p99 = figure.subplots(1, 3)
    for name, points in curves.items():
        _line(rate, name, points, "steps_per_second", 1)
        _line(p50, name, points, "p50", 1e3)
        _line(p99, name, points, "p99", 1e3)
    for axes, label in ((rate, "steps a second"), (p50, "p50 latency, ms"), (p99, "p99 latency, ms")):
        axes.set(xlabel="sessions", ylabel=label, xscale="log", yscale="log")
        axes.set_xticks([1, 8, 64], ["1", "8", "64"], minor=False)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    figure.legend(*rate.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def _line(
    axes: Any, name: str, points: Sequence[tuple[float, Mapping[str, Spread]]], key: str, scale_by: float
) -> None:
    x = [at for at, _ in points]
    spreads = [values[key] for _, values in points]
    middle = [spread.median * scale_by for spread in spreads]
    errors = [
        [(spread.median - spread.low) * scale_by for spread in spreads],
        [(spread.high - spread.median) * scale_by for spread in spreads],
    ]
    ours = name.startswith("recurra")
    style: dict[str, Any] = {"color": "black", "linewidth": 2.5, "zorder": 5} if ours else {"linewidth": 1.2}
    axes.errorbar(x, middle, yerr=errors, label=name, marker="o", markersize=4, capsize=2, **style)


def _rates(curves: Curves, title: str, label: str, scale_of_x: str) -> Figure:
    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        _line(axes, name, points, "steps_per_second", 1)
    axes.set(title=title, xlabel=label, ylabel="steps a second", xscale=scale_of_x)
    if scale_of_x == "linear":
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return figure


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path
