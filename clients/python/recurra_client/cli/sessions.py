"""The commands `recurra sessions …`."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from recurra.v1 import sessions_pb2
from rich.table import Table

from recurra_client.cli.common import DEFAULT_SERVER, AsJson, Durability, Server, console, print_json, seconds, span

app = App(
    name="sessions", help="List, open, reset, close, fork, export and import the sessions of a server, or drain it."
)

_PIPE = Path("-")
SessionId = Annotated[str, Parameter(help="The session's id.")]


@app.command(name="list")
async def list_(  # noqa: D417 - the others are described by their types
    *,
    model: str = "",
    limit: int = 100,
    server: Server = DEFAULT_SERVER,
    json: AsJson = False,
) -> None:
    """List the open sessions, in the order they were opened.

    Parameters
    ----------
    model
        Only those of this model.
    limit
        The most to list.
    """
    async with server.client(reconnect=0) as client:
        sessions = [session async for session in client.sessions.list(model, limit=limit)]
        if json:
            print_json(sessions)
            return
        total = await client.sessions.count(model)
        if sessions:
            _print(sessions)
        if len(sessions) < total or not sessions:
            console(stderr=True).print(f"{len(sessions)} of {total:,} open sessions")


@app.command
async def get(session_id: SessionId, /, *, server: Server = DEFAULT_SERVER, json: AsJson = False) -> None:
    """Tell how a session stands; this does not count as use."""
    async with server.client(reconnect=0) as client:
        _answer(await client.sessions.get(session_id), json=json)


@app.command(name="open")
async def open_(  # noqa: D417 - the others are described by their types
    model: str,
    /,
    *,
    version: str = "",
    id: str = "",  # noqa: A002 - the flag's name
    idle_timeout: float | None = None,
    durability: Durability = None,
    server: Server = DEFAULT_SERVER,
    json: AsJson = False,
) -> None:
    """Open a session.

    Parameters
    ----------
    model
        Name of the model.
    version
        Its version. Empty: the latest.
    id
        The id. Empty: an unguessable one is made.
    idle_timeout
        Seconds it may go unused before it expires. Unset: the server's default.
    """
    async with (
        server.client(reconnect=0) as client,
        client.session(
            model,
            version=version,
            session_id=id,
            idle_timeout=idle_timeout,
            durability=durability or "",
            keep=True,
        ) as session,
    ):
        _answer(await session.info(), json=json)


@app.command
async def reset(session_id: SessionId, /, *, server: Server = DEFAULT_SERVER, json: AsJson = False) -> None:
    """Put a session back to its initial states and step number 0."""
    async with server.client(reconnect=0) as client:
        _answer(await client.sessions.reset(session_id), json=json)


@app.command
async def close(
    session_ids: Annotated[list[str], Parameter(help="The sessions' ids.", negative="")],
    /,
    *,
    server: Server = DEFAULT_SERVER,
    json: AsJson = False,
) -> None:
    """Close sessions and free their memory; tells how they stood."""
    async with server.client(reconnect=0) as client:
        closed = [await client.sessions.close(session_id) for session_id in session_ids]
        print_json(closed) if json else _print(closed)


@app.command
async def fork(  # noqa: D417 - the others are described by their types
    session_id: SessionId,
    /,
    *,
    id: str = "",  # noqa: A002 - the flag's name
    server: Server = DEFAULT_SERVER,
    json: AsJson = False,
) -> None:
    """Open a new session that begins where another stands.

    Parameters
    ----------
    id
        The new one's id. Empty: an unguessable one is made.
    """
    async with server.client(reconnect=0) as client:
        _answer(await client.sessions.fork(session_id, id), json=json)


@app.command
async def export(  # noqa: D417 - the others are described by their types
    session_id: SessionId, file: Path, /, *, server: Server = DEFAULT_SERVER
) -> None:
    """Write a snapshot of a session into a file; the session is left as it is.

    Parameters
    ----------
    file
        Where to; "-" for stdout.
    """
    async with server.client(reconnect=0) as client:
        snapshot = await client.sessions.export(session_id)
    _write(file, snapshot)


@app.command(name="import")
async def import_(  # noqa: D417 - the others are described by their types
    file: Path,
    /,
    *,
    id: str = "",  # noqa: A002 - the flag's name
    idle_timeout: float | None = None,
    durability: Durability = None,
    server: Server = DEFAULT_SERVER,
    json: AsJson = False,
) -> None:
    """Open a session that goes on where a snapshot was taken, here or on another server with the same model.

    Parameters
    ----------
    file
        What `recurra sessions export` wrote; "-" for stdin.
    id
        The session's id. Empty: an unguessable one is made.
    idle_timeout
        Seconds that it may go unused before it expires. Unset: the server's default.
    """
    snapshot = _read(file)
    async with server.client(reconnect=0) as client:
        session = await client.sessions.import_(snapshot, id, idle_timeout=idle_timeout, durability=durability or "")
        _answer(session, json=json)


@app.command
async def rewind(  # noqa: D417 - the others are described by their types
    session_id: SessionId, file: Path, /, *, server: Server = DEFAULT_SERVER, json: AsJson = False
) -> None:
    """Put an open session back to where a snapshot was taken.

    Parameters
    ----------
    file
        What `recurra sessions export` wrote; "-" for stdin.
    """
    snapshot = _read(file)
    async with server.client(reconnect=0) as client:
        _answer(await client.sessions.rewind(session_id, snapshot), json=json)


@app.command
async def drain(  # noqa: D417 - the others are described by their types
    *, grace: float | None = None, server: Server = DEFAULT_SERVER, json: AsJson = False
) -> None:
    """Empty a server before it is ended: it opens no more sessions, and others go on with those that are durable.

    Parameters
    ----------
    grace
        Seconds that open streams may go on. Unset: as long as the server gives them on SIGTERM.
    """
    out = console(stderr=True)
    async with server.client(reconnect=0, timeout=None) as client:
        with out.status(f"draining {server.server} ...") if out.is_terminal else nullcontext():
            drained = await client.sessions.drain(grace=grace)
    if json:
        print_json(drained)
    else:
        console().print(
            f"{server.server} is drained: {drained.moved:,} sessions can go on elsewhere, {drained.left:,} end with it"
        )


def _write(file: Path, data: bytes) -> None:
    if file == _PIPE:
        sys.stdout.buffer.write(data)
    else:
        file.write_bytes(data)


def _read(file: Path) -> bytes:
    return sys.stdin.buffer.read() if file == _PIPE else file.read_bytes()


def _answer(session: sessions_pb2.Session, *, json: bool) -> None:
    print_json(session) if json else _print([session])


def _print(sessions: list[sessions_pb2.Session]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("SESSION", "MODEL", "VERSION", "STEPS", "DURABLE", "IDLE", "EXPIRES IN"):
        table.add_column(column, justify="left" if column in ("SESSION", "MODEL", "VERSION") else "right", no_wrap=True)
    for session in sessions:
        idle, timeout = seconds(session.idle), seconds(session.idle_timeout)
        table.add_row(
            session.session_id,
            session.model,
            session.version,
            f"{session.steps:,}",
            _durable(session),
            span(idle),
            span(max(0.0, timeout - idle)),
        )
    console().print(table)


def _durable(session: sessions_pb2.Session) -> str:
    """Such as "async 1,234": how, and up to which step."""
    name = sessions_pb2.Durability.Name(session.durability).removeprefix("DURABILITY_").lower()
    return "no" if session.durability == sessions_pb2.DURABILITY_EPHEMERAL else f"{name} {session.durable_step:,}"
