"""The command `recurra serve`."""

import asyncio
import sys

from recurra_server.rpc import transport
from recurra_server.settings import Settings
from recurra_server.starting import StartError, about_access, about_encryption, about_store, check_operators
from recurra_server.telemetry.logs import configure_logs
from recurra_server.worker import Begin, Ready, run
from recurra_server.workers import Workers

_DEFAULTS = Settings()
_WITH_STORE = "each of which goes on with any durable session"
_WITHOUT_STORE = (
    "each with sessions of its own: a session is known only over connections to its worker; --store changes that"
)


def serve(*, settings: Settings = _DEFAULTS) -> None:
    """Serve the models of a repository over gRPC until SIGTERM or Ctrl-C, then drain.

    Parameters
    ----------
    settings
        How to serve.
    """
    transport.allow_many_connections()
    transport.begin_as_grpc_needs()

    def ready(server: Ready) -> None:
        for model in server.models:
            print(model)
        if settings.workers > 1:
            print(f"{settings.workers} workers, {_WITH_STORE if settings.store else _WITHOUT_STORE}")
        print(f"gRPC on {settings.host}:{server.port} {about_encryption(settings)}")
        if settings.store:
            print(about_store(settings))
        print(about_access(settings), flush=True)
        if settings.metrics:
            scheme = "http" if settings.protection.tls_cert is None else "https"
            print(f"metrics on {scheme}://{settings.host}:{server.metrics_port}/metrics", flush=True)

    try:
        check_operators(settings)
        if settings.workers == 1:
            sys.exit(run(Begin(settings), ready))
        else:
            configure_logs(settings.log_level, json=settings.logs_json)
            asyncio.run(Workers(settings).run(ready))
    except StartError as error:
        print(f"recurra: {error}", file=sys.stderr)
        raise SystemExit(1) from None
