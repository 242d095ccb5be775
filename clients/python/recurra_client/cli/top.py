"""The command `recurra top`."""

import asyncio
import math
import time
from typing import Annotated, Final

from cyclopts import Parameter, validators
from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from recurra_client.cli.between import Between
from recurra_client.cli.common import ANYBODY, Credentials, console, milliseconds, size, span
from recurra_client.cli.scrape import Labels, scrape
from recurra_client.cli.usererror import UserError

DEFAULT_URL: Final = "http://localhost:9464/metrics"
_FULL: Final = 0.9
_COLUMNS: Final = ("MODEL", "VERSION", "SESSIONS", "STEPS/S", "FAILED/S", "WAITING", "P50", "P99")
_MORE_COLUMNS: Final = ("QUEUE P99", "COMPUTE P99", "BATCH", "BUSY")
_WIDE: Final = 120  # characters: what all columns need


async def top(  # noqa: D417 - the others are described by their types
    *,
    url: str = DEFAULT_URL,
    every: Annotated[float, Parameter(validator=validators.Number(gte=0.1))] = 1.0,
    count: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
    credentials: Credentials = ANYBODY,
) -> None:
    """Watch a server live: its sessions, models, rates and latencies, until Ctrl-C.

    Parameters
    ----------
    url
        Of its metrics.
    every
        Seconds between two looks; rates and latencies are of the time between them.
    count
        How often to look before it ends. 0: for ever on a terminal, else once.
    """
    out = console()
    looks = count or (0 if out.is_terminal else 1)
    before, seen = await asyncio.to_thread(scrape, url, credentials), 0
    with Live(console=out, auto_refresh=False, screen=out.is_terminal and not count) as live:
        while not looks or seen < looks:
            await asyncio.sleep(every)
            try:
                now = await asyncio.to_thread(scrape, url, credentials)
            except (UserError, OSError) as error:
                if looks:
                    raise
                live.update(Text(f"{error}; Ctrl-C to leave", "bold red"), refresh=True)
                continue
            live.update(view(url, Between(before, now), out.width), refresh=True)
            before, seen = now, seen + 1


def view(url: str, between: Between, width: int) -> RenderableType:
    """One look at a server, on so many characters."""
    return Panel(
        Group(_server(between), "", _models(between, width), "", _traffic(between)),
        title=Text.assemble((" recurra top ", "bold cyan"), (f"{url} ", "dim")),
        title_align="left",
        subtitle=Text(f" every {between.seconds:.3g} s · {time.strftime('%H:%M:%S')} ", "dim"),
        subtitle_align="right",
        box=box.ROUNDED,
        border_style="grey42",
        padding=(1, 2),
    )


def _server(between: Between) -> RenderableType:
    now = between.now
    build = now.of("recurra_build_info")[0].labels
    sessions, limit = now.total("recurra_sessions"), now.value("recurra_sessions_limit")
    workers = max(1.0, now.value("recurra_workers", 1))
    draining, up = now.value("recurra_draining", 0), now.value("recurra_store_up", 1)
    stored = bool(now.of("recurra_store_request_seconds_count"))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_row(
        *_fact("version", build.get("version", "")),
        *_fact("uptime", span(time.time() - now.value("process_start_time_seconds", time.time()))),
        *_fact("workers", f"{workers:.0f}"),
        *_fact("state", "draining" if draining else "serving", red=bool(draining)),
    )
    table.add_row(
        *_fact("sessions", f"{sessions:,.0f} of {limit:,.0f}", red=sessions >= _FULL * limit),
        *_fact("streams", f"{now.value('recurra_streams', 0):,.0f}"),
        *_fact("states", size(now.total("recurra_state_bytes"))),
        *_fact("memory", size(now.value("process_resident_memory_bytes", 0))),
    )
    loop = between.rate("recurra_loop_cpu_seconds_total") / workers
    table.add_row(
        *_fact("processor", f"{between.rate('process_cpu_seconds_total'):.2f} cores"),
        *_fact("event loop", f"{loop:.0%} busy", red=loop >= _FULL),
        *_fact("store", ("answers" if up else "is away") if stored else "none", red=not up),
        *_fact("not durable", span(now.value("recurra_durable_lag_seconds", 0)) if stored else ""),
    )
    return table


def _fact(name: str, value: str, *, red: bool = False) -> tuple[Text, Text]:
    return Text(name, "dim"), Text(value, "bold red" if red else "bold")


def _models(between: Between, width: int) -> RenderableType:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    columns = _COLUMNS + _MORE_COLUMNS * (width >= _WIDE)
    for column in columns:
        table.add_column(column, justify="left" if column in ("MODEL", "VERSION") else "right", no_wrap=True)
    for sample in sorted(between.now.of("recurra_sessions"), key=lambda sample: sorted(sample.labels.items())):
        key = sample.labels

        def here(labels: Labels, key: Labels = key) -> bool:
            return all(labels.get(name) == value for name, value in key.items())

        def failed(labels: Labels, key: Labels = key) -> bool:
            return here(labels, key) and labels["outcome"] not in ("ok", "replayed", "cancelled")

        failures = between.rate("recurra_steps_total", failed)
        cells = (
            Text(key["model"], "bold cyan"),
            key["version"],
            f"{sample.value:,.0f}",
            f"{between.rate('recurra_steps_total', here):,.0f}",
            Text(f"{failures:,.1f}", "bold red") if failures else "0",
            f"{between.now.total('recurra_queue_depth', here):,.0f}",
            *(_time(between.quantile(share, "recurra_step_seconds", here)) for share in (0.5, 0.99)),
            _time(between.quantile(0.99, "recurra_step_queue_seconds", here)),
            _time(between.quantile(0.99, "recurra_step_compute_seconds", here)),
            _number(between.mean("recurra_batch_size", here)),
            f"{between.rate('recurra_compute_seconds_total', here):.0%}",
        )
        table.add_row(*cells[: len(columns)])
    return table


def _traffic(between: Between) -> RenderableType:
    refused = between.rates("recurra_sessions_refused_total", "bound")
    sessions = {
        "opened": between.rate("recurra_sessions_opened_total"),
        **between.rates("recurra_sessions_ended_total", "reason"),
        **{f"refused for {bound}": rate for bound, rate in refused.items()},
    }
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    errors = between.rates("recurra_errors_total", "reason")
    for title, rates in (("sessions a second", sessions), ("errors a second", errors)):
        shown = [f"{name} {rate:,.1f}" for name, rate in rates.items() if rate]
        table.add_row(Text(title, "dim"), ", ".join(shown) or "none")
    return table


def _time(seconds: float) -> str:
    return "" if math.isnan(seconds) else milliseconds(seconds)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f}"
