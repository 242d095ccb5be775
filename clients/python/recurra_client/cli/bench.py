"""The command `recurra bench`."""

import asyncio
import json as json_module
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter, validators
from recurra.v1 import models_pb2
from rich import box
from rich.live import Live
from rich.table import Table
from rich.text import Text

from recurra_client.cli.common import DEFAULT_SERVER, AsJson, Durability, Server, console, milliseconds
from recurra_client.cli.usererror import UserError
from recurra_client.codec import Codec
from recurra_client.durability import DURABILITIES
from recurra_client.load.outcome import Api, Outcome, Plan, Tls
from recurra_client.load.processes import LoadError, run_in_processes

_Positive = Annotated[int, Parameter(validator=validators.Number(gte=1))]
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one load; times in seconds."""

    sessions: int
    steps_per_second: float
    p50: float
    p99: float
    longest: float
    refused: dict[str, int]
    """Sessions that the server would not open, by reason."""
    errors: dict[str, int]
    client_cpu: float
    """Processors that the load generator kept busy: near `processes`, it is what is measured."""
    late_p99: float | None
    """In an open loop: how late the load generator sent its messages, which is part of their latency."""

    @classmethod
    def of(cls, sessions: int, outcome: Outcome) -> "Row":
        """Reduce a load to its figures."""
        latencies = np.frombuffer(outcome.latencies) if outcome.latencies else np.zeros(1)
        p50, p99 = np.percentile(latencies, [50, 99])
        seconds = max(outcome.seconds, 1e-9)
        late = float(np.percentile(np.frombuffer(outcome.lateness), 99)) if outcome.lateness else None
        return cls(
            sessions=sessions,
            steps_per_second=outcome.steps / seconds,
            p50=float(p50),
            p99=float(p99),
            longest=float(latencies.max()),
            refused=dict(outcome.refused),
            errors=dict(outcome.errors),
            client_cpu=outcome.cpu / seconds,
            late_p99=late,
        )


def bench(  # noqa: D417 - the others are described by their types
    model: Annotated[str, Parameter(show_default=False)] = "",
    /,
    *,
    sessions: str = "1,8,64",
    seconds: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 5.0,
    pace: str = "",
    api: Api = "stream",
    chunk: _Positive = 1,
    in_flight: _Positive = 1,
    processes: _Positive = 1,
    connections: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
    outputs: str = "",
    version: str = "",
    durability: Durability = None,
    server: Server = DEFAULT_SERVER,
    json: AsJson = False,
) -> None:
    """Measure a server under load: steps a second and their latency, for numbers of sessions.

    Parameters
    ----------
    model
        Name of the model. Empty: the only one that is served.
    sessions
        Numbers of sessions to measure, one after another.
    seconds
        How long each is measured.
    pace
        Each session sends a step every so often, such as 32ms, answered or not; latency counts from when the step was
        due, so "sent late", the load generator's own share, is part of it. The sessions come at 500 a second and step
        from then on; it is measured when all have come. Empty: the next step as soon as the one before is answered.
    api
        stream: a StreamSteps stream for each session. unary: a call for each step. batch: all sessions' steps in one
        StepBatch message.
    chunk
        Steps of one session in one message; latency is that of a message.
    in_flight
        Messages that are sent and not yet answered: of each session, or with `--api batch` in all, the sessions shared
        out among them.
    processes
        Processes that make the load: more, where "client cpu" says that one is not enough.
    connections
        TCP connections that the sessions of a process share. 0: one for each session.
    outputs
        Names of outputs to ask for at each step, separated by commas. Empty: those that are not optional.
    version
        Version of the model. Empty: the latest.
    """
    counts, ours = _counts(sessions), server.credentials
    described = asyncio.run(_describe(model, version, server))
    wanted = Codec(described).asking([name for name in outputs.split(",") if name]).wanted
    out = console(stderr=json)
    rows: list[Row] = []
    title = _title(described, api, seconds, pace, chunk)
    with Live(console=out, auto_refresh=False) if out.is_terminal else nullcontext() as live:
        for count in counts:
            plan = Plan(
                target=server.server,
                tls=Tls(ours.tls_ca, ours.tls_client_cert, ours.tls_client_key) if server.encrypted else None,
                token=ours.read_token(),
                model=described,
                api=api,
                sessions=count,
                seconds=seconds,
                pace=_pace(pace),
                chunk=chunk,
                connections=connections,
                in_flight=in_flight,
                durability=DURABILITIES[durability or ""],
                outputs=wanted,
            )
            if api == "batch" and count % in_flight:
                raise UserError(f"{count} sessions cannot be shared out among {in_flight} messages")
            watch = _watcher(live, title, rows, count, chunk * (count // in_flight if api == "batch" else 1))
            try:
                rows.append(Row.of(count, run_in_processes(plan, processes if api != "batch" else 1, watch)))
            except LoadError as error:
                raise UserError(f"{count} sessions: {error}") from None
            if live is not None:
                live.update(_table(title, rows), refresh=True)
    if json:
        print(json_module.dumps(_as_dict(described, api, seconds, pace, chunk, processes, rows), indent=2))
    elif not out.is_terminal:
        out.print(_table(title, rows))


async def _describe(model: str, version: str, server: Server) -> models_pb2.Model:
    async with server.client(reconnect=0) as client:
        if model:
            return await client.model(model, version)
        served = sorted({found.name for found in await client.models()})
        if len(served) != 1:
            raise UserError(f"name the model to load: {', '.join(served) or 'none is served'}")
        return await client.model(served[0], version)


def _watcher(live: Live | None, title: str, rows: list[Row], sessions: int, steps: int) -> Callable[[int], None]:
    """Shows the running rate: of what was answered since the last look."""
    seen, at = 0, time.perf_counter()

    def watch(messages: int) -> None:
        nonlocal seen, at
        now = time.perf_counter()
        if messages > seen or now - at > 1:
            rate = (messages - seen) / (now - at) * steps
            seen, at = messages, now
            if live is not None:
                live.update(_table(title, rows, (sessions, rate)), refresh=True)

    return watch


def _table(title: str, rows: list[Row], running: tuple[int, float] | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    paced = any(row.late_p99 is not None for row in rows)
    refused = any(row.refused for row in rows)
    columns = ["sessions", *(["refused"] * refused), "steps/s", "p50", "p99", "longest", "errors", "client cpu"]
    columns += ["sent late p99"] * paced
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            f"{row.sessions:,}",
            *([_counted(row.refused)] * refused),
            Text(f"{row.steps_per_second:,.0f}", "bold"),
            milliseconds(row.p50),
            milliseconds(row.p99),
            milliseconds(row.longest),
            _counted(row.errors),
            f"{row.client_cpu:.0%}",
            *([milliseconds(row.late_p99)] if row.late_p99 is not None else []),
        )
    if running is not None:
        waiting = ["…"] * len(columns)
        waiting[0], waiting[columns.index("steps/s")] = f"{running[0]:,}", f"{running[1]:,.0f}"
        table.add_row(*waiting, style="dim")
    return table


def _counted(reasons: dict[str, int]) -> Text:
    text = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    return Text(text, "bold red") if text else Text("0")


def _title(model: models_pb2.Model, api: Api, seconds: float, pace: str, chunk: int) -> str:
    how = f"a step every {pace}" if pace else "closed loop"
    chunks = f", {chunk} steps a message" if chunk > 1 else ""
    return f"{model.name} version {model.version}: {api}, {how}{chunks}, {seconds:g} s each"


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise UserError(f"--sessions is {text!r}, expected numbers of at least 1, such as 1,8,64")
    return counts


def _pace(text: str) -> float:
    """Seconds; 0 for none."""
    if not text:
        return 0.0
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*(us|ms|s)", text)
    if match is None or float(match[1]) == 0:
        raise UserError(f"--pace is {text!r}, expected a time such as 32ms, 500us or 1s")
    return float(match[1]) * _UNITS[match[2]]


def _as_dict(
    model: models_pb2.Model, api: Api, seconds: float, pace: str, chunk: int, processes: int, rows: list[Row]
) -> dict[str, Any]:
    return {
        "model": model.name,
        "version": model.version,
        "digest": model.digest,
        "api": api,
        "seconds": seconds,
        "pace_seconds": _pace(pace) or None,
        "chunk": chunk,
        "processes": processes,
        "results": [
            {
                "sessions": row.sessions,
                "steps_per_second": round(row.steps_per_second, 1),
                "p50_seconds": round(row.p50, 7),
                "p99_seconds": round(row.p99, 7),
                "longest_seconds": round(row.longest, 7),
                "refused": row.refused,
                "errors": row.errors,
                "client_cpu": round(row.client_cpu, 3),
                "late_p99_seconds": None if row.late_p99 is None else round(row.late_p99, 7),
            }
            for row in rows
        ],
    }
