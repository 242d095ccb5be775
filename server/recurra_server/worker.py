"""One server process: by itself, or as one of the workers on a port (`python -m recurra_server.worker`).

A worker reads how to begin from stdin, a line of JSON, and answers with a line on stdout: a `Ready` once it
serves, or why it cannot; before that, an empty line with each model that it comes to, as the sign that it goes on.
From then on the two ask each other over these pipes (`Peer`). It drains on SIGTERM, and when stdin ends: then whoever
started it is gone.
"""

import asyncio
import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from pydantic import TypeAdapter

from recurra_server.app import App
from recurra_server.engine.served_model import ServedModel
from recurra_server.peer import LONGEST_LINE, Peer
from recurra_server.rpc import transport
from recurra_server.rpc.models import ModelKey
from recurra_server.settings import Settings
from recurra_server.starting import StartError
from recurra_server.telemetry.logs import configure_logs


@dataclass(frozen=True, slots=True)
class Ready:
    """A server serves, or cannot.

    Attributes:
        port: Where it listens for gRPC.
        metrics_port: Where its metrics are; 0 for nowhere.
        models: A line about each model.
        error: Why it cannot serve; empty where it does.
    """

    port: int = 0
    metrics_port: int = 0
    models: list[str] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Begin:
    """How a server begins.

    Attributes:
        settings: How to serve.
        excluded: What it leaves out of the model repository.
        verdicts: What it need not try in another process, and why it cannot be used; nothing where it can.
    """

    settings: Settings
    excluded: list[ModelKey] = field(default_factory=list)
    verdicts: list[tuple[ModelKey, str]] = field(default_factory=list)


BEGIN = TypeAdapter(Begin)
READY = TypeAdapter(Ready)
GOES_ON = b"\n"  # what a worker says while it begins, so that it is not taken for stuck


def run(begin: Begin, ready: Callable[[Ready], None], *, worker: bool = False) -> int:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        begin: How to serve.
        ready: Called once it serves.
        worker: Whether it is one of several, to be ended by the end of stdin, too.

    Returns:
        The exit status; see `App.run_until_end`.

    Raises:
        StartError: It cannot serve.
    """
    configure_logs(begin.settings.log_level, json=begin.settings.logs_json)
    with asyncio.Runner(loop_factory=transport.new_event_loop) as runner:
        return runner.run(_serve(begin, ready, worker=worker))


async def _serve(begin: Begin, ready: Callable[[Ready], None], *, worker: bool) -> int:
    keeper = await _keeper() if worker else None
    app = App(begin.settings, keeper=keeper)
    going_on = partial(_tell, GOES_ON) if worker else lambda: None
    port, metrics_port = await app.start(excluded=begin.excluded, verdicts=dict(begin.verdicts), going_on=going_on)
    gc.freeze()  # what is there now stays: it need not be looked at again and again
    ready(Ready(port, metrics_port, [_about(model) for model in app.engine.models()]))
    if keeper is not None:
        listening = asyncio.ensure_future(keeper.listen())
        listening.add_done_callback(lambda _: app.end())
    return await app.run_until_end()


async def _keeper() -> Peer:
    """The process at the other ends of stdin and stdout."""
    lines = asyncio.StreamReader(limit=LONGEST_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    return Peer(lines, _tell)


def _about(model: ServedModel) -> str:
    states = f"{model.signature.state_bytes} bytes of state a session" if model.signature.kept else "no states"
    alone = ", sessions run one by one" if model.max_batch_size == 1 else ""
    return f"serving {model.name} version {model.version} ({states}{alone})"


def _tell(line: bytes) -> None:
    with suppress(BrokenPipeError):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def main() -> None:
    """Serve as a worker."""

    def tell(ready: Ready) -> None:
        _tell(READY.dump_json(ready) + b"\n")

    try:
        sys.exit(run(BEGIN.validate_json(sys.stdin.readline()), tell, worker=True))
    except StartError as error:
        tell(Ready(error=str(error)))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
