"""The server's settings. Each is a flag, an environment variable and a key of recurra.toml."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from recurra_server.engine.limits import Limits
from recurra_server.security.bounds import Bounds

_Port = Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))]
_Count = Annotated[int, Parameter(validator=validators.Number(gte=0))]
_Positive = Annotated[int, Parameter(validator=validators.Number(gte=1))]
_Seconds = Annotated[float, Parameter(validator=validators.Number(gte=0))]


@dataclass(frozen=True, slots=True)
class Protection:
    """How connections are encrypted, and who may do what. All files are read again when they change."""

    tls_cert: Path | None = None
    """PEM file with the server's certificate, and those between it and its root."""
    tls_key: Path | None = None
    """PEM file with its private key."""
    tls_client_ca: Path | None = None
    """PEM file: clients need a certificate that one of these has signed (mutual TLS)."""
    insecure: bool = False
    """Listen on other addresses than this machine's own without encryption."""
    access: Path | None = None
    """YAML file that says who may do what (docs/security.md), read again when it changes. Unset: everybody may do
    everything."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve."""

    models: Path = Path("models")
    """Model repository: a folder of <name>/<version>/model.onnx."""
    watch: _Seconds = 0.0
    """Look every so many seconds for models that were added to the repository, changed or removed; 0: never."""
    operators: Annotated[tuple[Path, ...], Parameter(negative=())] = ()
    """Shared libraries of custom operators that models may use; they run with the server's rights. Unset: none."""
    load_seconds: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 60.0
    """Seconds that a model may take to be loaded and tried while others are served."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""
    port: _Port = 50051
    """Port for gRPC; 0 takes a free one."""
    metrics: bool = True
    """Whether metrics are kept and served."""
    metrics_port: _Port = 9464
    """Port for Prometheus metrics over HTTP; 0 takes a free one."""
    workers: _Positive = 1
    """Processes that share the port. With a store, each goes on with any durable session; without, a session is known
    only over the connections that were given to its process."""
    threads: _Count = 0
    """Threads inside one model call; 0: one, and in long calls one for each processor, shared out among the
    workers, if the model gets faster by them."""
    inline_ms: _Seconds = 1.0
    """A batch that takes no longer than this many milliseconds runs on the event loop's thread."""
    drain_seconds: _Seconds = 10.0
    """On SIGTERM, seconds for which open streams may go on before they are ended."""
    stream_window: _Positive = 256
    """Messages of one stream that may be read and not yet answered."""
    store: str = ""
    """Where durable sessions are kept: the URL of a Valkey or Redis (valkey://host:6379, valkeys:// with TLS,
    sentinel://host:26379,host/service), or embedded:<folder> for one of its own. Unset: sessions end with
    the server."""
    checkpoint_interval: Annotated[float, Parameter(validator=validators.Number(gt=0, lte=60))] = 0.1
    """Seconds in which what has changed of ASYNC sessions is put into the store once."""
    reflection: bool = True
    """Describe the API to tools such as grpcurl."""
    traces: str = ""
    """Send traces to the OpenTelemetry collector at this URL (OTLP over HTTP), such as http://localhost:4318; OTEL_*
    environment variables set the rest, such as the share of steps that is traced. Unset: none."""
    slow_seconds: _Seconds = 1.0
    """Log a step that took longer than this, with the reason, at most once a second; 0: never."""
    channelz: bool = False
    """Tell tools such as grpcdebug of connections, streams and their traffic."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log that is written."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """JSON lines or columns for people; auto: columns on a terminal."""
    bounds: Annotated[Bounds, Parameter(name="*", group="Connections")] = field(default_factory=Bounds)
    protection: Annotated[Protection, Parameter(name="*", group="Protection")] = field(default_factory=Protection)
    limits: Annotated[Limits, Parameter(name="*", group="Bounds")] = field(default_factory=Limits)

    @property
    def logs_json(self) -> bool:
        """Whether logs are written as JSON."""
        return self.log_format == "json" or (self.log_format == "auto" and not sys.stderr.isatty())
