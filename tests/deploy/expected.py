"""What every line of every panel must say, by what the load generator saw: `EXPECTED[title, legend]`."""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from recurra_server.telemetry.histograms import SECONDS, SIZES

from tests.deploy.machine import Use
from tests.deploy.scene import HASTY_SECONDS, WORKERS, Scene
from tests.deploy.seen import Seen, SeenStep

# The values of a line's series, by what the line calls them.
Values = dict[str, float]
Check = Callable[[Values], None]
_TOLERANCE = 0.05
_VERSIONS = {"lstm": "lstm/1", "counter": "counter/7", "hasty": "hasty/1"}
_STATE_BYTES = {"lstm": 2 * 128 * 4, "counter": 4, "hasty": 4}


@dataclass
class Truth:
    """What is known of a stretch of time.

    Attributes:
        seconds: Its length.
        seen: What callers saw.
        one, many: What the processes of each server used.
        streams: Open streams, by server.
    """

    scene: Scene
    seen: Seen
    seconds: float
    one: Use
    many: Use
    streams: Counter[str]


# --- kinds of checks ---------------------------------------------------------------------


def exactly(expected: float | Mapping[str, float]) -> Check:
    """Gauges, and what is 0."""

    def check(values: Values) -> None:
        assert values == _named(expected, values)

    return check


def about(expected: float | Mapping[str, float], tolerance: float = _TOLERANCE) -> Check:
    """Within a share of what was seen; what was not seen is 0 or missing."""

    def check(values: Values) -> None:
        wanted = _named(expected, values)
        for name in values.keys() | wanted.keys():
            value, right = values.get(name, 0.0), wanted.get(name, 0.0)
            assert math.isclose(value, right, rel_tol=tolerance, abs_tol=1e-9), f"{name}: {value}, but {right} was seen"

    return check


def between(low: float, high: float) -> Check:
    """What the load generator sees only bounds of."""

    def check(values: Values) -> None:
        assert values
        assert all(low <= value <= high for value in values.values()), f"{values}, not in {low} to {high}"

    return check


def within_a_bucket(low: float, high: float | None = None, bounds: Sequence[float] = SECONDS) -> Check:
    """A quantile: from the bucket below that of `low` to the one above that of `high`."""
    first = bisect_left(bounds, low) - 1
    last = bisect_left(bounds, low if high is None else high) + 1

    def check(values: Values) -> None:
        (value,) = values.values()
        assert first <= bisect_left(bounds, value) <= last, f"{value}, but {low} to {high or low} was seen"

    return check


def _named(expected: float | Mapping[str, float], values: Values) -> Mapping[str, float]:
    if isinstance(expected, Mapping):
        return expected
    assert len(values) == 1, values
    return dict.fromkeys(values, expected)


# --- what was seen -----------------------------------------------------------------------


class _Quantile(NamedTuple):
    name: str
    share: float


_QUANTILES = (_Quantile("p50", 0.5), _Quantile("p95", 0.95), _Quantile("p99", 0.99))


def _of(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share, method="inverted_cdf"))


def _latency(steps: Sequence[SeenStep], share: float) -> Check:
    """The server's time of a step is at least what its parts take, and at most what its caller waited.

    Of small steps these are far apart, as they mostly wait on their way.
    """
    parts = _of([step.queue + step.compute for step in steps], share)
    return within_a_bucket(parts, _of([step.latency for step in steps], share))


def slow_p99(seen: Seen) -> Check:
    """Of steps that take long, callers wait for little more than the parts: a wrong p99 fits not between."""
    steps = [step for step in seen.steps if step.model == "hasty"]
    parts, waited = (
        _of([step.queue + step.compute for step in steps], 0.99),
        _of([step.latency for step in steps], 0.99),
    )
    near = within_a_bucket(parts, waited)

    def check(values: Values) -> None:
        assert waited < 5 * parts, "this machine is too busy to tell"
        near(values)

    return check


def _mean_latency(steps: Sequence[SeenStep]) -> Check:
    parts = float(np.mean([step.queue + step.compute for step in steps]))
    return between(parts * (1 - _TOLERANCE), float(np.mean([step.latency for step in steps])))


def expected(truth: Truth) -> dict[tuple[str, str], Check]:
    """By the panel's title and the line's legend."""
    scene, seen, seconds = truth.scene, truth.seen, truth.seconds

    def rate(counts: float | Mapping[str, float]) -> Check:
        if isinstance(counts, Mapping):
            return about({name: count / seconds for name, count in counts.items()})
        return about(counts / seconds)

    steps, outcomes = seen.steps, seen.outcomes
    faults = seen.faults
    calls = seen.calls()
    sizes = sorted(calls.elements())
    open_sessions = {_VERSIONS[model]: 0.0 for model in _VERSIONS}
    for (_, model), count in scene.open.items():
        open_sessions[_VERSIONS[model]] += count
    everything = sum(open_sessions.values())
    computed: Counter[str] = Counter()
    for step in steps:
        computed[_VERSIONS[step.model]] += step.compute / step.batch_size  # type: ignore[assignment]
    loop = {truth.one.instance: truth.one.loop / seconds, truth.many.instance: truth.many.loop / seconds}
    busiest = max(loop[truth.one.instance], loop[truth.many.instance] / WORKERS)
    uses = (truth.one, truth.many)
    files = max(use.files / use.files_allowed for use in uses)
    state_bytes = sum(count * _STATE_BYTES[model] for (_, model), count in scene.open.items())
    refused = {f"refused: {bound}": count for bound, count in seen.refused.items()}

    checks: dict[tuple[str, str], Check] = {
        ("Steps per second", "steps"): rate(sum(outcomes.values())),
        ("Failed by the server", "failed"): about(faults / (faults + outcomes["ok"] + outcomes["replayed"])),
        ("Step latency, p99", "p99"): _latency(steps, 0.99),
        ("Open sessions", "sessions"): exactly(everything),
        ("Open sessions", "{{model}}/{{version}}"): exactly(open_sessions),
        ("Nearest to a limit", "used"): exactly(1.0),
        ("Servers draining", "draining"): exactly(0.0),
        ("Steps by outcome", "{{outcome}}"): rate(outcomes),
        ("Errors by reason", "{{reason}} ({{fault}})"): rate(
            {f"{reason} ({fault})": count for (reason, fault), count in seen.errors.items()}
        ),
        ("Mean step, split", "waiting"): about(float(np.mean([step.queue for step in steps]))),
        ("Mean step, split", "computing"): about(float(np.mean([step.compute for step in steps]))),
        ("Mean step, split", "whole step"): _mean_latency(steps),
        ("Batch size", "mean"): about(float(np.mean(sizes))),
        ("Steps waiting", "{{model}}/{{version}}"): exactly(dict.fromkeys(_VERSIONS.values(), 0.0)),
        ("Steps waiting", "waiting"): exactly(0.0),
        ("Sessions, queue and files, of their limits", "sessions"): exactly(1.0),
        ("Sessions, queue and files, of their limits", "admission"): between(0, 1),
        ("Sessions, queue and files, of their limits", "queue"): exactly(0.0),
        ("Sessions, queue and files, of their limits", "open files"): about(files, 0.2),
        ("Processor, of one core", "event loop"): about(busiest, 0.15),
        ("Processor, of one core", "model calls"): between(0, sum(computed.values()) / seconds * (1 + _TOLERANCE)),
        ("Sessions refused", "{{bound}}"): rate(seen.refused),
        ("Sessions refused", "refused"): rate(sum(seen.refused.values())),
        # one model
        ("p99, of its target", "of the target"): _of_target(slow_p99(seen)),
        ("State not finite", "steps"): rate(outcomes["state_not_finite"]),
        ("Versions not loaded", "failed"): exactly(1.0),
        ("Chunk length", "mean"): about(sum(seen.timesteps.values()) / outcomes["ok"]),
        ("Step latency, all of it", "{{le}}"): _spread(len(steps) / seconds),
        ("Time in model calls", "{{model}}/{{version}}"): _computed(computed, seen.computed_in_vain, seconds),
        ("Opened and ended", "opened"): rate(seen.opened + seen.taken_over),
        ("Opened and ended", "{{reason}}"): rate(seen.ended),
        ("Opened and ended", "refused: {{bound}}"): rate(refused),
        ("Memory of a session's states", "a session"): about(state_bytes / everything),
        # sessions and durability
        ("Expired, of those that ended", "expired"): about(seen.ended["expired"] / sum(seen.ended.values())),
        ("Servers without their store", "servers"): exactly(0.0),
        ("Not durable for", "oldest change"): between(0, 1),
        ("Taken over", "sessions"): rate(seen.taken_over),
        ("Opened", "opened"): rate(seen.opened + seen.taken_over),
        ("Opened", "refused: {{bound}}"): rate(refused),
        ("Ended", "{{reason}}"): rate(seen.ended),
        ("Replayed", "steps"): rate(outcomes["replayed"]),
        ("Memory of states", "held by sessions"): exactly(float(state_bytes)),
        ("Memory of states", "set aside"): between(state_bytes, 1e9),
        ("Open streams", "{{instance}}"): exactly(truth.streams),
        ("Checkpoints", "{{outcome}}"): _checkpoints(seen, seconds),
        ("Not in the store yet", "{{instance}}"): between(0, 1),
        ("Moved and taken over", "taken over"): rate(seen.taken_over),
        ("Moved and taken over", "let go"): rate(seen.ended["moved"]),
        ("Requests to the store", "{{operation}}"): _requests(seen, seconds),
        ("Requests that failed", "{{operation}}"): exactly(
            dict.fromkeys(("create", "delete", "save", "take_over"), 0.0)
        ),
        # the processes
        ("Processes", "processes"): exactly(1.0 + WORKERS),
        ("Shortest uptime", "uptime"): about(min(use.uptime for use in uses)),
        ("Files, of those allowed", "used"): about(files, 0.2),
        ("Event loop", "busy"): about(busiest, 0.15),
        ("Event loop", "{{instance}}"): about(loop, 0.15),
        ("Tasks", "{{instance}}"): _tasks(truth.streams),
        ("CPU", "{{instance}}"): about({use.instance: use.processor / seconds for use in uses}, 0.15),
        ("Memory", "{{instance}} resident"): about({f"{use.instance} resident": use.resident for use in uses}, 0.2),
        ("Memory", "{{instance}} address space"): about(
            {f"{use.instance} address space": use.virtual for use in uses}, 0.2
        ),
        ("Open files", "{{instance}}"): about({use.instance: use.files for use in uses}, 0.2),
        ("Open files", "{{instance}} limit"): about({f"{use.instance} limit": use.files_allowed for use in uses}),
        ("Garbage collections", "{{instance}} {{generation}}"): _of_generations(uses, seconds),
        ("Objects collected", "{{instance}} {{generation}}"): _of_generations(uses, seconds),
        ("Objects not collectable", "{{instance}} {{generation}}"): between(0, 0),
    }
    for title in ("Time steps by model", "Time steps, by version"):
        by_version = {_VERSIONS[model]: count for model, count in seen.timesteps.items()}
        by_version["counter/7"] += outcomes["session_moved"]  # applied here, and taken back
        checks[title, "{{model}}/{{version}}"] = rate(by_version)
    checks["Model calls", "{{model}}/{{version}}"] = rate(
        {name: seen.calls(model).total() for model, name in _VERSIONS.items()}
    )
    for name, share in _QUANTILES:
        checks["Step latency", name] = _latency(steps, share)
        checks["Waiting", name] = within_a_bucket(_of([step.queue for step in steps], share))
        checks["Computing", name] = within_a_bucket(_of([step.compute for step in steps], share))
        checks["Batch size", name] = within_a_bucket(_of(sizes, share), bounds=SIZES)
        checks["Time of a request", name] = between(1e-5, max(step.latency for step in steps))
    return checks


def expected_facts() -> dict[str, list[dict[str, str]]]:
    """By the table's title: the labels that its rows have among others."""
    ours = {"version": version("recurra"), "grpc": version("grpcio"), "onnxruntime": version("onnxruntime")}
    served = [
        {"model": model, "version": name.partition("/")[2], "latest": "true"} for model, name in _VERSIONS.items()
    ]
    return {
        "Servers": [ours, ours],
        "Models": served + served,
        "Versions": served + served,
        "Python": [{"implementation": "CPython"}] * 2,
    }


def _of_target(seconds: Check) -> Check:
    target = HASTY_SECONDS / 4  # what is admitted: docs/model-format.md
    return lambda values: seconds({name: value * target for name, value in values.items()})


def _spread(steps_per_second: float) -> Check:
    def check(values: Values) -> None:
        assert len(values) == len(SECONDS) + 1
        assert math.isclose(values["+Inf"], steps_per_second, rel_tol=_TOLERANCE)
        assert values["5"] == values["+Inf"], "no step took more than 5 s"

    return check


def _checkpoints(seen: Seen, seconds: float) -> Check:
    """A SYNC step has its own; those of ASYNC sessions come together."""

    def check(values: Values) -> None:
        counts = {outcome: value * seconds for outcome, value in values.items()}
        assert counts["failed"] == 0
        assert math.isclose(counts["stale"], seen.ended["moved"], rel_tol=_TOLERANCE)
        saved = seen.sync_steps
        assert saved * (1 - _TOLERANCE) <= counts["saved"] <= (saved + len(seen.steps)) * (1 + _TOLERANCE)

    return check


def _requests(seen: Seen, seconds: float) -> Check:
    def check(values: Values) -> None:
        counts = {operation: value * seconds for operation, value in values.items()}
        assert math.isclose(counts["create"], seen.durable_opened, rel_tol=_TOLERANCE)
        assert math.isclose(counts["take_over"], seen.asked_store, rel_tol=_TOLERANCE)
        assert counts["save"] >= seen.sync_steps * (1 - _TOLERANCE)
        assert counts["delete"] == 0, "no durable session was closed"

    return check


def _computed(seen: Mapping[str, float], in_vain: int, seconds: float) -> Check:
    """All that was seen, and of the counter what was computed in vain."""
    others = about({name: spent / seconds for name, spent in seen.items() if name != "counter/7"})

    def check(values: Values) -> None:
        values = dict(values)
        counter, computed = values.pop("counter/7") * seconds, seen["counter/7"]
        assert computed * (1 - _TOLERANCE) <= counter <= computed + in_vain * 0.1
        others(values)

    return check


def _tasks(streams: Mapping[str, int]) -> Check:
    """Each stream is worked on by a few, and each process has some of its own."""

    def check(values: Values) -> None:
        assert values.keys() == streams.keys()
        for name, tasks in values.items():
            assert streams[name] < tasks <= 3 * streams[name] + 64 * WORKERS

    return check


def _of_generations(uses: Sequence[Use], seconds: float) -> Check:
    def check(values: Values) -> None:
        assert values.keys() == {f"{use.instance} {generation}" for use in uses for generation in range(3)}
        assert all(0 <= value < 1e5 for value in values.values())

    return check
