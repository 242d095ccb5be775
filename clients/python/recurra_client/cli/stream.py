"""The command `recurra stream`."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated, TextIO

from cyclopts import Parameter, validators
from cyclopts.exceptions import CycloptsError
from recurra.v1 import models_pb2

from recurra_client.cli.common import DEFAULT_SERVER, Durability, Server, console, seconds
from recurra_client.cli.feeds import open_feed
from recurra_client.cli.follow import Follower, Pace
from recurra_client.cli.gates import units_of
from recurra_client.cli.gates_plot import save_gates
from recurra_client.cli.plot import require_matplotlib, save_plot
from recurra_client.cli.predictions import PredictionsWriter
from recurra_client.cli.track import Reading
from recurra_client.cli.usererror import UserError
from recurra_client.client import Client

_Positive = validators.Number(gte=1)


async def stream(  # noqa: D417 - `durability` and `server` are described by their types
    model: str,
    /,
    *files: Annotated[str, Parameter(allow_leading_hyphen=True)],
    truth: str = "",
    rate: str = "",
    chunk: Annotated[int, Parameter(validator=_Positive)] = 1,
    limit: Annotated[int | None, Parameter(validator=_Positive)] = None,
    parallel: Annotated[bool, Parameter(negative="")] = False,
    output: Annotated[str, Parameter(allow_leading_hyphen=True)] = "",
    plot: Path | None = None,
    gates: Annotated[bool, Parameter(negative="")] = False,
    version: str = "",
    session: str = "",
    durability: Durability = None,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Feed steps through a model, each file a session, and watch what it predicts.

    A CSV file's columns are picked by the model's input labels if its header has them all; else all columns of
    numbers are taken, in their order. An NPY file holds an array [T, dims].

    Parameters
    ----------
    model
        Name of the model.
    files
        CSV or NPY files; "-" or none reads CSV lines from stdin, and steps as they come.
    truth
        CSV column with the true class (its label or index) or value, to compare with.
    rate
        Steps a second, or "real" for the model's own step period. Empty: as fast as answers come.
    chunk
        Steps sent together in one message.
    limit
        At most so many steps of each file.
    parallel
        Stream all files at once, instead of one after another.
    output
        CSV file for the predictions; "-" for stdout.
    plot
        PNG, SVG or PDF file for a picture of the predictions. Needs matplotlib.
    gates
        Show what happens inside an LSTM that was exported with --gates, live and as <file>_gates.png for each file.
    version
        Version of the model. Empty: the latest; of a session that is open, its own.
    session
        Id of an open session to go on with, and to leave open. Empty: a new one for each file.
    """
    mistyped = [path for path in files if path.startswith("-") and path != "-"]
    if mistyped:
        raise CycloptsError(f"Unknown option: {mistyped[0]}.")
    if plot is not None:
        require_matplotlib("--plot")
    if gates:
        require_matplotlib("--gates")
    paths = files or ("-",)
    if session and len(paths) > 1:
        raise UserError(f"--session goes on with one session, and {len(paths)} files were given: give one")
    if session and durability:
        raise UserError("--durability is chosen when a session is opened, and --session goes on with one that is open")
    if "-" in paths and sys.stdin.isatty():
        raise UserError(f"give files to stream, or pipe CSV lines in: recurra stream {model} < readings.csv")
    async with server.client(reconnect=0) as client:  # tells at once if no server is there
        if session:
            version = await _version_of(client, session, model, version)
        described = await client.model(model, version)
    gate_units = units_of(described) if gates else 0
    feeds = [open_feed(path, described, truth) for path in paths]
    pace = Pace(chunk, _period(rate, described), limit, parallel)
    out = console(stderr=output == "-")
    with _open_output(output) as file:
        writer = PredictionsWriter(file, Reading(described)) if file else None
        async with server.client() as client:
            follower = Follower(client, described, feeds, pace, out, writer, gate_units, durability or "", session)
            await follower.run()
    if plot is not None:
        save_plot(plot, f"{described.name} version {described.version}", follower.tracks)
        out.print(f"drawn into {plot}")
    for track, inside in zip(follower.tracks, follower.gates, strict=False):
        drawn = Path(f"{Path(track.name).stem}_gates.png")
        save_gates(drawn, f"{described.name} version {described.version}: {track.name}", track, inside)
        out.print(f"gates drawn into {drawn}")


async def _version_of(client: Client, session: str, model: str, version: str) -> str:
    """The version that an open session uses, which must be of the model and the version that were asked for."""
    standing = await client.sessions.get(session)
    if standing.model != model or version not in ("", standing.version):
        raise UserError(f"session {session} is one of model {standing.model}, version {standing.version}")
    return standing.version


def _open_output(path: str) -> contextlib.AbstractContextManager[TextIO | None]:
    if path in ("", "-"):
        return contextlib.nullcontext(sys.stdout if path else None)
    try:
        return Path(path).open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def _period(rate: str, model: models_pb2.Model) -> float:
    """Seconds from one step to the next; 0: none to keep."""
    if rate == "real":
        if not model.HasField("step_period"):
            raise UserError(f"model {model.name} does not say its step period; give --rate in steps a second")
        return seconds(model.step_period)
    try:
        value = float(rate or "inf")
    except ValueError:
        value = 0.0
    if not value > 0:
        raise UserError(f"--rate is {rate!r}, expected steps a second, or 'real'")
    return 1 / value
