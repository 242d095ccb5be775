"""The paced part as a picture: latency against sessions, the knee, and what becomes of those beyond it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
import matplotlib.ticker
from matplotlib.figure import Figure

from benchmarks.parts import paced
from benchmarks.runs import Findings, Spread

_BELOW, _TAKEN, _REFUSING = paced.CASES
_MARKS: Final = {
    _BELOW: ("tab:green", "s", "p99 at 80 % of the knee"),
    _TAKEN: ("tab:red", "v", "p99 at 130 %, all taken"),
    _REFUSING: ("tab:blue", "D", "p99 at 130 %, refusing"),
}


def draw(findings: Findings) -> Figure:
    """A panel for each model."""
    figures = findings.of(paced.PART)
    models = list(dict.fromkeys(name for name, _ in figures))
    figure = Figure(figsize=(6.2 * len(models), 5.6), layout="constrained")
    figure.suptitle("A step every 32 ms and session (open loop); latency from when a step was due")
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        points = sorted(
            ((int(case), values) for (name, case), values in figures.items() if name == model),
            key=lambda point: point[0],
        )
        _curves(axes, points)
        for (name, _), values in findings.of(paced.KNEE).items():
            if name == model and (knee := values["sessions"].median):
                axes.axvline(knee, color="grey", linestyle=":", linewidth=1.5, label=f"knee: {knee:,.0f} sessions")
        for (name, case), values in findings.of(paced.AROUND).items():
            if name == model:
                _mark(axes, case, values)
        axes.set(title=model, xlabel="open sessions", ylabel="ms", xscale="log", yscale="log")
        axes.xaxis.set_major_locator(mpl.ticker.LogLocator(base=2, subs=(1.0, 1.5)))
        axes.minorticks_off()
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize=9)
    return figure


def _curves(axes: Any, points: Sequence[tuple[int, Mapping[str, Spread]]]) -> None:
    x = [at for at, _ in points]
    for key, color in (("p50", "0.6"), ("p99", "black")):
        spreads = [values[key] for _, values in points]
        axes.plot(x, [spread.median * 1e3 for spread in spreads], color=color, marker="o", markersize=4, label=key)
        low, high = [spread.low * 1e3 for spread in spreads], [spread.high * 1e3 for spread in spreads]
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axes.axhline(paced.PACE * 1e3, color="tab:red", linestyle="--", linewidth=1, label="deadline: 32 ms")


def _mark(axes: Any, case: str, values: Mapping[str, Spread]) -> None:
    """The p99 of the sessions that were taken, with the range of the rounds."""
    color, marker, label = _MARKS[case]
    came, refused, p99 = values["sessions"].median, values["refused"].median, values["p99"]
    if case == _REFUSING:
        label += f" ({refused:,.0f} of {came:,.0f})"
    error = [[(p99.median - p99.low) * 1e3], [(p99.high - p99.median) * 1e3]]
    style = {"color": color, "marker": marker, "markersize": 8, "capsize": 3, "linestyle": "none", "zorder": 6}
    taken = came - refused - values["unanswered"].median
    axes.errorbar([taken], [p99.median * 1e3], yerr=error, label=label, **style)
