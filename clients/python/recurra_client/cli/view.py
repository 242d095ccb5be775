"""How a running session looks in the terminal."""

import itertools
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from recurra.v1 import models_pb2
from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from recurra_client.cli.braille import line_plot
from recurra_client.cli.common import milliseconds
from recurra_client.cli.track import RECENT, UNKNOWN, Track

# Told apart by people who do not see all colours too (after Okabe and Ito, 2008), lightened for dark terminals.
PALETTE: Final = (
    "#56b4e9", "#e69f00", "#2fc79a", "#d98cbb", "#f0e442", "#ee7733", "#8f8cff",
    "#bbbbbb", "#33bbee", "#cc5577", "#99aa33", "#a08060",
)  # fmt: skip
TOP_CLASSES: Final = 7
BAR_WIDTH: Final = 32
PLOT_STEPS: Final = 240
SETTLED: Final = "grey42"


def color(index: int) -> str:
    """The colour of a class or a line."""
    return PALETTE[index % len(PALETTE)] if index >= 0 else "grey23"


def live_view(model: models_pb2.Model, track: Track, rate: float, width: int) -> RenderableType:
    """One session as it runs.

    Args:
        model: Its model.
        track: Its course so far.
        rate: Steps a second.
        width: Of the terminal.
    """
    inner = min(width, 110) - 6
    body = _classes(track, inner) if track.reading.is_classes else _values(track, inner)
    of = f" of {track.total:,}" if track.total is not None else ""
    return Panel(
        Group(body, "", _figures(track)),
        title=Text.assemble((f" {model.name} ", "bold cyan"), (f"version {model.version} · ", "dim"), f"{track.name} "),
        title_align="left",
        subtitle=Text.assemble(f" step {track.steps:,}{of}", ("  ·  ", "dim"), f"{rate:,.0f} steps/s "),
        subtitle_align="right",
        border_style=SETTLED,
        box=box.ROUNDED,
        padding=(1, 2),
        width=min(width, 110),
    )


def parallel_view(model: models_pb2.Model, tracks: Sequence[Track], rate: float, width: int) -> RenderableType:
    """Several sessions as they run, a line each."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    classes = tracks[0].reading.is_classes
    for title in ("session", "steps", "predicted over time" if classes else "last value", tracks[0].score_name, "p50"):
        table.add_column(title, justify="left" if title in ("session", "predicted over time") else "right")
    strip = max(10, min(width, 110) - 60)
    for track in tracks:
        if classes:
            shown: RenderableType = color_strip(track.predicted_classes(), strip, track.total)
        else:
            shown = f"{track.values(1)[-1, 0]:.4g}" if track.steps else ""
        of = f"/{track.total:,}" if track.total is not None else ""
        table.add_row(track.name, f"{track.steps:,}{of}", shown, track.score_text(), milliseconds(track.latency(50)))
    return Panel(
        table,
        title=Text.assemble((f" {model.name} ", "bold cyan"), (f"version {model.version} ", "dim")),
        title_align="left",
        subtitle=f" {len(tracks)} sessions · {rate:,.0f} steps/s ",
        subtitle_align="right",
        border_style=SETTLED,
        padding=(1, 2),
        width=min(width, 110),
    )


def color_strip(classes: NDArray[np.int64], width: int, total: int | None = None) -> Text:
    """Classes over time as a strip of colours: each cell shows the most frequent class of its part of the time."""
    span = max(total or len(classes), 1)
    edges = np.linspace(0, span, min(width, span) + 1).astype(int)
    strip = Text()
    for begin, end in itertools.pairwise(edges):
        part = classes[begin:end]
        if len(part) == 0:
            strip.append("·", "grey23")
            continue
        values, counts = np.unique(part, return_counts=True)
        strip.append("█", color(int(values[np.argmax(counts)])))
    return strip


def summary_table(tracks: Sequence[Track], seconds: float) -> Table:
    """The figures of all sessions, when they are done."""
    with_score = any(track.score() is not None for track in tracks)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("file")
    columns = ["steps", *([tracks[0].score_name] if with_score else []), "p50 latency", "p99 latency"]
    for column in columns:
        table.add_column(column, justify="right")
    for track in tracks:
        table.add_row(*_summary_row(track, with_score))
    if len(tracks) > 1:
        table.add_section()
        table.add_row(*_summary_row(_joined(tracks), with_score), style="bold")
    steps = sum(track.steps for track in tracks)
    table.caption = f"{steps:,} steps in {seconds:.1f} s, {steps / max(seconds, 1e-9):,.0f} a second"
    table.caption_justify = "left"
    return table


def print_line(out: Console, track: Track) -> None:
    """One line when a session is done, where there is no terminal to be live on."""
    facts = [f"{track.steps:,} steps"]
    if track.score() is not None:
        facts.append(f"{track.score_name} {track.score_text()}")
    facts += [f"p50 {milliseconds(track.latency(50))}", f"p99 {milliseconds(track.latency(99))}"]
    out.print(f"{track.name}: {', '.join(facts)}", markup=False, soft_wrap=True)


def _classes(track: Track, width: int) -> RenderableType:
    """The likely classes now as bars, and predicted and true classes over time."""
    labels = track.reading.labels
    now = track.values(1)[-1] if track.steps else np.zeros(len(labels))
    true_now = int(track.truths[-1]) if track.steps and not np.isnan(track.truths[-1]) else UNKNOWN
    # All classes if they are few: bars that stay in their place are easier to follow than a ranking.
    shown = range(len(labels)) if len(labels) <= TOP_CLASSES + 1 else np.argsort(-now)[:TOP_CLASSES].tolist()
    best = int(np.argmax(now)) if track.steps else UNKNOWN
    bars = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for index in shown:
        label = Text(labels[index], style="bold" if index == best else "")
        mark = Text()
        if index == best:
            right = UNKNOWN in (true_now, best) or true_now == best
            mark.append("◀ predicted", "bold green" if right and true_now != UNKNOWN else "bold")
        if index == true_now and index != best:
            mark.append("◁ true", "bold red")
        elif index == true_now:
            mark.append(" ✔ true", "bold green")
        bars.add_row(label, _bar(float(now[index]), color(index)), Text(f"{now[index]:6.1%}"), mark)
    strips = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    strip = width - 13
    true = track.true_classes()
    if (true != UNKNOWN).any():
        strips.add_row(Text("true", "dim"), color_strip(true, strip, track.total))
    strips.add_row(Text("predicted", "dim"), color_strip(track.predicted_classes(), strip, track.total))
    return Group(bars, "", strips)


def _values(track: Track, width: int) -> RenderableType:
    """The values over the last steps as lines."""
    values = track.values(PLOT_STEPS)
    lines = [values[:, column] for column in range(min(values.shape[1], 4))]
    names = track.reading.labels[: len(lines)]
    colors = [color(index) for index in range(len(lines))]
    truth = track.truth()[-PLOT_STEPS:]
    if not np.isnan(truth).all():
        lines.insert(0, truth)  # the predictions are drawn over it
        names.insert(0, "true")
        colors.insert(0, "grey70")
    legend = Text("   ").join(
        Text.assemble(("━ ", shade), name, ("  " + (f"{line[-1]:.4g}" if len(line) else "-"), "bold"))
        for name, shade, line in zip(names, colors, lines, strict=True)
    )
    if track.reading.unit:
        legend.append(f"   {track.reading.unit}", "dim")
    return Group(legend, "", line_plot(lines, colors, width=width, height=12))


def _bar(value: float, style: str) -> Text:
    eighths = round(np.clip(value, 0, 1) * BAR_WIDTH * 8)
    full, rest = divmod(int(eighths), 8)
    bar = "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
    return Text.assemble((bar, style), ("·" * (BAR_WIDTH - len(bar)), "grey19"))


def _figures(track: Track) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    if score := track.score_text():
        row = [Text(track.score_name, "dim"), Text(score, "bold"), Text(f"last {RECENT}:", "dim")]
        table.add_row(*row, Text(track.score_text(RECENT), "bold"))
    table.add_row(
        Text("latency", "dim"),
        Text.assemble(("p50 ", "dim"), (milliseconds(track.latency(50)), "bold")),
        Text.assemble(("p99 ", "dim"), (milliseconds(track.latency(99)), "bold")),
        Text.assemble(
            ("of it in the server: waiting ", "dim"),
            milliseconds(_mean(track.queues)),
            (" computing ", "dim"),
            milliseconds(_mean(track.computes)),
        ),
    )
    if track.replayed:
        table.add_row(Text("replayed", "dim"), Text(f"{track.replayed:,}"), Text("after a broken connection", "dim"))
    return table


def _mean(values: Sequence[float]) -> float:
    recent = values[-RECENT:]
    return sum(recent) / len(recent) if recent else 0.0


def _summary_row(track: Track, with_score: bool) -> list[str]:
    score = [track.score_text()] if with_score else []
    return [track.name, f"{track.steps:,}", *score, milliseconds(track.latency(50)), milliseconds(track.latency(99))]


def _joined(tracks: Sequence[Track]) -> Track:
    joined = Track("all", tracks[0].reading)
    for track in tracks:
        joined.outputs.extend(track.outputs)
        joined.truths.extend(track.truths)
        joined.latencies.extend(track.latencies)
    return joined
