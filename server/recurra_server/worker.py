"""One server process: by itself, or as one of the workers on a port (`python -m recurra_server.worker`).

A worker reads its settings from stdin, a line of JSON, and answers with a line on stdout: a `Ready` once it
serves, or why it cannot. It drains on SIGTERM, and when stdin ends: then whoever started it is gone.
"""

import asyncio
import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from recurra_server.app import App
from recurra_server.engine.served_model import ServedModel
from recurra_server.rpc import transport
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


SETTINGS = TypeAdapter(Settings)
READY = TypeAdapter(Ready)


def run(settings: Settings, ready: Callable[[Ready], None], *, worker: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        settings: How to serve.
        ready: Called once it serves.
        worker: Whether it is one of several, to be ended by the end of stdin, too.

    Raises:
        StartError: It cannot serve.
    """
    configure_logs(settings.log_level, json=settings.logs_json)
    with asyncio.Runner(loop_factory=transport.new_event_loop) as runner:
        runner.run(_serve(settings, ready, worker=worker))


async def _serve(settings: Settings, ready: Callable[[Ready], None], *, worker: bool) -> None:
    app = App(settings, worker=worker)
    port, metrics_port = await app.start()
    if worker:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), app.end)
    gc.freeze()  # what is there now stays: it need not be looked at again and again
    ready(Ready(port, metrics_port, [_about(model) for model in app.engine.models()]))
    await app.run_until_end()


def _about(model: ServedModel) -> str:
    states = f"{model.signature.state_bytes} bytes of state a session" if model.signature.kept else "no states"
    alone = ", sessions run one by one" if model.max_batch_size == 1 else ""
    return f"serving {model.name} version {model.version} ({states}{alone})"


def main() -> None:
    """Serve as a worker."""

    def tell(ready: Ready) -> None:
        with suppress(BrokenPipeError):
            print(READY.dump_json(ready).decode(), flush=True)

    try:
        run(SETTINGS.validate_json(sys.stdin.readline()), tell, worker=True)
    except StartError as error:
        tell(Ready(error=str(error)))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
