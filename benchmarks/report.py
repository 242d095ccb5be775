"""The findings as a page of Markdown: a table for each part, medians with the range of the rounds."""

from collections.abc import Callable, Mapping
from typing import Final

from benchmarks.contenders import OPEN_INFERENCE
from benchmarks.parts import durability, fairness, messages, options, paced, scale, sequences, steps
from benchmarks.peers.registry import TRITON
from benchmarks.runs import Findings, Spread

_Format = Callable[[float], str]


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _ms(value: float) -> str:
    ms = value * 1e3
    return f"{ms:.3f}" if ms < 1 else f"{ms:.2f}" if ms < 10 else f"{ms:.1f}"


def _us(value: float) -> str:
    return f"{value * 1e6:.1f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _mib(value: float) -> str:
    return f"{value / 2**20:,.0f}"


COLUMNS: Final[dict[str, tuple[str, _Format]]] = {
    "sessions": ("sessions", _count),
    "refused": ("refused", _count),
    "unanswered": ("not even refused", _count),
    "steps_per_second": ("steps/s", _count),
    "p50": ("p50 ms", _ms),
    "p99": ("p99 ms", _ms),
    "server_cpu_per_step": ("server CPU us/step", _us),
    "client_cpu": ("client CPU", _percent),
    "late_p99": ("sent late p99 ms", _ms),
    "errors": ("errors", _count),
    "crashes": ("server crashes before", _count),
    "resident_bytes": ("memory MiB", _mib),
    "bytes_per_session": ("bytes a session", _count),
    "open_seconds_each": ("open us", _us),
    "open_cpu_each": ("open CPU us", _us),
    "first_seconds_each": ("first step us", _us),
    "first_cpu_each": ("first step CPU us", _us),
    "close_seconds_each": ("close us", _us),
    "close_cpu_each": ("close CPU us", _us),
    "expire_cpu_each": ("expire CPU us", _us),
    "state_bytes": ("bytes of state", _count),
    "checkpoint_bytes": ("bytes in the store", _count),
}
_TITLES: Final = {
    steps.LIMIT: "Single steps, one session a stream, beside a bare grpc.aio echo",
    steps.MODEL: "The model alone in ONNX Runtime, one thread; the case is the batch",
    steps.PEERS: "Single steps, beside the peers; the case is the number of sessions",
    sequences.PERF_ANALYZER: "Sequences over ModelStreamInfer, driven by perf_analyzer",
    sequences.LEAN: "Sequences over ModelStreamInfer, driven by our own load generator",
    messages.BULK: "Bulk: one step of each of 256 sessions in a StepBatch",
    messages.CHUNKS: "Chunks: 64 steps of one session in a message",
    scale.PART: "Open sessions; 1,000 of them are stepped at random over 64 streams",
    paced.PART: "A step every 32 ms and session; the case is the number of sessions",
    paced.MISHAPS: "What missed the deadline once, and kept it when tried again: left out above",
    paced.KNEE: "The knee: the most sessions whose p99 stays within 32 ms",
    paced.AROUND: "A step every 32 ms and session, below the knee and beyond it",
    durability.COST: "Durable sessions in a closed loop, beside ephemeral ones; the case is the number of sessions",
    durability.TRIP: "Saving checkpoints with nothing round it; the case is how many at once",
    durability.SIZE: "A checkpoint of LSTM-128",
    durability.TAKE_OVER: "The first call for a session that only the store has; the case is how many others it holds",
    fairness.FAIRNESS: "A quiet caller: 8 sessions with a step every 10 ms, beside noisy ones",
    options.TELEMETRY: "Metrics and logging, on and off",
    options.WORKERS: "Workers, LSTM-512x2",
    options.OUTPUTS: "An optional output; the case is the number of sessions",
}
_ALONE: Final[list[tuple[str, str | None]]] = [
    ("recurra", "ONNX Runtime alone"),
    ("recurra, 2 in flight", "ONNX Runtime alone"),
]
_RATIOS: Final[dict[str, list[tuple[str, str | None]]]] = {
    steps.LIMIT: [("recurra", "grpc.aio echo")],
    steps.PEERS: [("recurra", None)],
    sequences.PERF_ANALYZER: [(OPEN_INFERENCE, TRITON)],
    sequences.LEAN: [(OPEN_INFERENCE, None)],
    messages.BULK: _ALONE,
    messages.CHUNKS: _ALONE,
    durability.COST: [("ASYNC", "EPHEMERAL"), ("SYNC", "EPHEMERAL")],
    options.TELEMETRY: [("recurra", "recurra, off")],
    options.WORKERS: [(options.TWO, options.SINGLE), (options.TWO, "1 worker")],
    options.OUTPUTS: [(options.UNASKED, "recurra"), ("optional output, asked for", "recurra")],
}
"""Whose steps a second are held against whose; None: against everybody's."""


def markdown(findings: Findings, machine: Mapping[str, str], how: str) -> str:
    """The whole page."""
    lines = ["# Benchmark", "", how, "", *(f"* {key}: {value}" for key, value in machine.items()), ""]
    for part, title in _TITLES.items():
        figures = findings.of(part)
        if part == paced.PART:  # in the order of a search
            figures = dict(sorted(figures.items(), key=lambda item: (item[0][0], float(item[0][1]))))
        if figures:
            lines += [f"## {title}", "", *_table(figures), ""]
            if part in _RATIOS:
                lines += [*(line for pair in _RATIOS[part] for line in _ratios(findings, part, *pair)), ""]
            if part == steps.LIMIT:
                lines += [*_p50_above(findings, part, "recurra", "grpc.aio echo"), ""]
            if part == durability.TRIP:
                lines += [*_in_round_trips(findings), ""]
            if part == durability.TAKE_OVER:
                lines += [*_beside_many(figures), ""]
            if part == fairness.FAIRNESS:
                lines += [*_beside(findings), ""]
            if part == scale.PART:
                lines += [*_scaled(figures), ""]
    if findings.unavailable:
        lines += ["## Not measured", "", *(f"* {name}: {why}" for name, why in findings.unavailable.items()), ""]
    return "\n".join(lines)


def _table(figures: Mapping[tuple[str, str], Mapping[str, Spread]]) -> list[str]:
    keys = [key for key in COLUMNS if any(key in values for values in figures.values())]
    head = ["", "case", *(COLUMNS[key][0] for key in keys)]
    rows = [head, ["---", "---:", *("---:" for _ in keys)]]
    for (name, case), values in figures.items():
        rows.append([name, case, *(_cell(values.get(key), COLUMNS[key][1]) for key in keys)])
    return ["| " + " | ".join(row) + " |" for row in rows]


def _cell(spread: Spread | None, text: _Format) -> str:
    """The median; and the range, where the rounds differ."""
    if spread is None:
        return ""
    middle, low, high = text(spread.median), text(spread.low), text(spread.high)
    return middle if low == high else f"{middle} ({low}-{high})"


def _beside(findings: Findings) -> list[str]:
    """The quiet caller's p99 to what it is alone, pair by pair in each round."""
    p99 = {(s.case, s.round): s.values["p99"] for s in findings.samples if s.part == fairness.FAIRNESS}
    lines = []
    for case in dict.fromkeys(case for case, _ in p99 if case != fairness.ALONE):
        ratios = [value / p99[fairness.ALONE, turn] for (other, turn), value in p99.items() if other == case]
        spread = Spread.of(ratios)
        lines.append(f"* p99 {case} / alone: **{spread.median:.2f}** ({spread.low:.2f}-{spread.high:.2f})")
    return lines


def _ratios(findings: Findings, part: str, ours: str, base: str | None) -> list[str]:
    """Of ours to what it is held against, pair by pair in each round, for that is less noisy than the figures are."""
    rate = {(s.case, s.name, s.round): s.values["steps_per_second"] for s in findings.samples if s.part == part}
    lines = []
    for case, other in dict.fromkeys((case, name) for case, name, _ in rate if name != ours and base in (None, name)):
        pairs = [
            rate[case, ours, turn] / value
            for (of, name, turn), value in rate.items()
            if (of, name) == (case, other) and (case, ours, turn) in rate
        ]
        if pairs:
            spread = Spread.of(pairs)
            text = f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"
            lines.append(f"* {ours} / {other}, {case}: {text} of the steps a second")
    return lines


def _p50_above(findings: Findings, part: str, ours: str, base: str) -> list[str]:
    """By how much the p50 of ours is above another's, in each round: what is added to the bare transport."""
    p50 = {(s.case, s.name, s.round): s.values["p50"] for s in findings.samples if s.part == part}
    lines = []
    for case in dict.fromkeys(case for case, _, _ in p50):
        turns = [turn for of, name, turn in p50 if (of, name) == (case, ours) and (case, base, turn) in p50]
        if turns:
            spread = Spread.of([(p50[case, ours, turn] - p50[case, base, turn]) * 1e6 for turn in turns])
            text = f"{spread.median:+.0f} us ({spread.low:+.0f} to {spread.high:+.0f})"
            lines.append(f"* p50 of {ours} - {base}, {case}: {text}")
    return lines


def _in_round_trips(findings: Findings) -> list[str]:
    """What a SYNC step waits longer than an ephemeral one, in bare round trips of as many checkpoints."""
    trips = {(s.case, s.round): s.values["p50"] for s in findings.samples if s.part == durability.TRIP}
    p50 = {(s.case, s.name, s.round): s.values["p50"] for s in findings.samples if s.part == durability.COST}
    lines = []
    for case in dict.fromkeys(case for case, _ in trips):
        turns = [turn for of, turn in trips if of == case]
        spread = Spread.of(
            [(p50[case, "SYNC", turn] - p50[case, "EPHEMERAL", turn]) / trips[case, turn] for turn in turns]
        )
        text = f"{spread.median:.1f} ({spread.low:.1f} to {spread.high:.1f}) bare store round trips"
        lines.append(f"* p50 of SYNC - EPHEMERAL, {case}: {text}")
    return lines


def _beside_many(figures: Mapping[tuple[str, str], Mapping[str, Spread]]) -> list[str]:
    """A take-over beside most others, held against one beside the fewest."""
    p50 = sorted((int(case), values["p50"].median) for (_, case), values in figures.items())
    (few, base), (many, slow) = p50[0], p50[-1]
    return [f"* beside {many:,} / beside {few:,}: {slow / base:.2f} of the p50 (medians)"] if many > few else []


def _scaled(figures: Mapping[tuple[str, str], Mapping[str, Spread]]) -> list[str]:
    """The speed with the most sessions open, held against that with the fewest."""
    rates = sorted((int(case), values["steps_per_second"].median) for (_, case), values in figures.items())
    (few, base), (many, rate) = rates[0], rates[-1]
    return [f"* {many:,} open / {few:,} open: {rate / base:.2f} of the steps a second (medians)"] if many > few else []
