"""The command `recurra serve`."""

import asyncio
import sys

from recurra_server.app import App, StartError
from recurra_server.rpc import transport
from recurra_server.settings import Settings
from recurra_server.telemetry.logs import configure_logs

_DEFAULTS = Settings()


def serve(*, settings: Settings = _DEFAULTS) -> None:
    """Serve the models of a repository over gRPC until SIGTERM or Ctrl-C, then drain.

    Parameters
    ----------
    settings
        How to serve.
    """
    transport.begin_with_one_network_thread()
    json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    configure_logs(settings.log_level, json=json)
    try:
        with asyncio.Runner(loop_factory=transport.new_event_loop) as runner:
            runner.run(_serve(settings))
    except StartError as error:
        print(f"recurra: {error}", file=sys.stderr)
        raise SystemExit(1) from None


async def _serve(settings: Settings) -> None:
    app = App(settings)
    port, metrics_port = await app.start()
    for model in app.engine.models():
        states = f"{model.signature.state_bytes} bytes of state a session" if model.signature.states else "no states"
        print(f"serving {model.name} version {model.version} ({states})")
    print(f"gRPC on {settings.host}:{port}")
    print(f"metrics on http://{settings.host}:{metrics_port}/metrics", flush=True)
    await app.run_until_signal()
