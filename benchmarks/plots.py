"""The findings as pictures."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import matplotlib.ticker
from matplotlib.figure import Figure

from benchmarks.parts import options, paced, scale, steps
from benchmarks.runs import Findings, Spread

_OURS: Final = "black"
_STYLE: Final[dict[Any, Any]] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 10,
}
Figures = Mapping[tuple[str, str], Mapping[str, Spread]]
Curves = Mapping[str, list[tuple[float, Mapping[str, Spread]]]]


def draw(findings: Findings, folder: Path) -> list[Path]:
    """Draw what there are figures for: the files written."""
    drawn = []
    with mpl.rc_context(_STYLE):
        for part, title in (
            (steps.LIMIT, "Single steps, LSTM-128, closed loop"),
            (steps.PEERS, "Single steps, LSTM-128, closed loop, beside the peers"),
        ):
            if curves := _curves(findings, part):
                drawn.append(_save(_against_sessions(curves, title), folder / f"{part}.png"))
        if curves := _curves(findings, paced.PART):
            knees = {name: values["sessions"].median for (name, _), values in findings.of(paced.KNEE).items()}
            drawn.append(_save(_paced(curves, findings.of(paced.AROUND), knees), folder / "paced.png"))
        for part, label in ((scale.PART, "open sessions"), (options.WORKERS, "")):
            if curves := _curves(findings, part) if label else _bars(findings, part):
                drawn.append(_save(_rates(curves, label), folder / f"{part}.png"))
    return drawn


def _curves(findings: Findings, part: str) -> Curves:
    """By name: the figures at each number of sessions, in order."""
    curves: dict[str, list[tuple[float, Mapping[str, Spread]]]] = defaultdict(list)
    for (name, case), values in findings.of(part).items():
        curves[name].append((float(case), values))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in curves.items()}


def _bars(findings: Findings, part: str) -> Curves:
    """Workers: one curve over their number, which begins the name."""
    points = [(float(name.split()[0]), values) for (name, _), values in findings.of(part).items()]
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


def _line(axes: Any, name: str, points: list[tuple[float, Mapping[str, Spread]]], key: str, scale_by: float) -> None:
    x = [at for at, _ in points]
    spreads = [values[key] for _, values in points]
    middle = [spread.median * scale_by for spread in spreads]
    errors = [
        [(spread.median - spread.low) * scale_by for spread in spreads],
        [(spread.high - spread.median) * scale_by for spread in spreads],
    ]
    ours = name.startswith("recurra")
    style: dict[str, Any] = {"color": _OURS, "linewidth": 2.5, "zorder": 5} if ours else {"linewidth": 1.2}
    axes.errorbar(x, middle, yerr=errors, label=name, marker="o", markersize=4, capsize=2, **style)


def _paced(
    curves: Curves, around: Mapping[tuple[str, str], Mapping[str, Spread]], knees: Mapping[str, float]
) -> Figure:
    """By model: p50 and p99 against sessions; the deadline, the knee, and what becomes of those beyond it."""
    figure = Figure(figsize=(6.2 * len(curves), 4.6), layout="constrained")
    figure.suptitle("A step every 32 ms and session (open loop); latency from when a step was due")
    for axes, (name, points) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        x = [at for at, _ in points]
        for key, color in (("p50", "tab:blue"), ("p99", _OURS)):
            axes.plot(
                x, [values[key].median * 1e3 for _, values in points], color=color, marker="o", markersize=4, label=key
            )
        axes.axhline(paced.PACE * 1e3, color="tab:red", linestyle="--", linewidth=1, label="deadline, 32 ms")
        if knee := knees.get(name):
            axes.axvline(knee, color="grey", linestyle=":", linewidth=1.5, label=f"knee, {knee:,.0f} sessions")
        for (model, case), values in around.items():
            if model == name and case in _MARKS:
                _mark(axes, case, values)
        axes.set(title=name, xlabel="sessions", ylabel="ms", xscale="log", yscale="log")
        axes.xaxis.set_major_locator(mpl.ticker.LogLocator(base=2))
        axes.minorticks_off()
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.legend(frameon=False, loc="upper left", fontsize=9)
    return figure


_MARKS: Final = {
    paced.CASES[0]: ("tab:green", "s", "p99 at 80% of the knee"),
    paced.CASES[1]: ("tab:red", "v", "p99 at 130%, all taken"),
    paced.CASES[2]: ("tab:green", "D", "p99 at 130%, some refused"),
}


def _mark(axes: Any, case: str, values: Mapping[str, Spread]) -> None:
    """The p99 of the sessions that were taken, with the range of the rounds."""
    color, marker, label = _MARKS[case]
    taken, p99 = values["sessions"].median - values["refused"].median, values["p99"]
    if refused := values["refused"].median:
        label += f" ({refused:,.0f} of {values['sessions'].median:,.0f})"
    error = [[(p99.median - p99.low) * 1e3], [(p99.high - p99.median) * 1e3]]
    axes.errorbar(
        [taken], [p99.median * 1e3], yerr=error, color=color, marker=marker, markersize=7, capsize=3, linestyle="none",
        label=label, zorder=6,
    )  # fmt: skip


def _rates(curves: Curves, label: str) -> Figure:
    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        _line(axes, name, points, "steps_per_second", 1)
    axes.set(xlabel=label or "workers", ylabel="steps a second", xscale="log" if label else "linear")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return figure


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path
