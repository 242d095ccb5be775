"""What the commands that talk to a server share."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # failures are reported by us, in one line; set before grpc is imported

import datetime
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from recurra.v1 import tensor_pb2
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from recurra_client.cli.plain import plain
from recurra_client.cli.usererror import UserError
from recurra_client.client import Client
from recurra_client.credentials import tls

AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, for programs.")]

Durability = Annotated[
    Literal["ephemeral", "async", "sync"] | None,
    Parameter(
        help="What outlives the server: nothing, all but the last moments, or every step that was answered. "
        "Unset: as the server has it."
    ),
]


@Parameter(name="*", group="Server")
@dataclass(frozen=True, slots=True)
class Credentials:
    """Whom we trust, and who we are."""

    tls_ca: Path | None = None
    """Encrypt; PEM file with who signs the server's certificate."""
    tls_client_cert: Path | None = None
    """PEM file with a certificate of our own, if the server asks for one."""
    tls_client_key: Path | None = None
    """PEM file with its private key."""
    token: str = ""
    """Shows the server who calls. Others on this machine see a flag: better RECURRA_TOKEN, or a file."""
    token_file: Path | None = None
    """File with the token."""

    def __post_init__(self) -> None:
        if (self.tls_client_cert is None) != (self.tls_client_key is None):
            raise UserError("TLS with a certificate of one's own needs both --tls-client-cert and --tls-client-key")

    def read_token(self) -> str:
        """The token, as it is now; empty where there is none.

        Raises:
            OSError: The file cannot be read.
        """
        return self.token_file.read_text().strip() if self.token_file is not None else self.token


ANYBODY: Final = Credentials()


@Parameter(name="*", group="Server")
@dataclass(frozen=True, slots=True)
class Server:
    """Which server, and how to talk to it."""

    server: str = "localhost:50051"
    """Address of the server, HOST:PORT."""
    tls: bool = False
    """Encrypt; the server's certificate must be signed by somebody whom this machine trusts."""
    credentials: Credentials = ANYBODY

    @property
    def encrypted(self) -> bool:
        """Whether to use TLS."""
        return self.tls or self.credentials.tls_ca is not None or self.credentials.tls_client_cert is not None

    def client(self, *, reconnect: float = 20.0, timeout: float | None = 30.0) -> Client:
        """A client of it.

        Raises:
            OSError: A file cannot be read.
        """
        ours = self.credentials
        return Client(
            self.server,
            reconnect=reconnect,
            timeout=timeout,
            credentials=tls(ours.tls_ca, ours.tls_client_cert, ours.tls_client_key) if self.encrypted else None,
            token=ours.read_token(),
        )


DEFAULT_SERVER: Final = Server()


class PlainConsole(Console):
    """Shows what servers say as it is: texts hold neither markup nor emoji codes, and nothing that a terminal obeys."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Make text with styles of something."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


def console(*, stderr: bool = False) -> Console:
    """The terminal; where there is none (a pipe, a file), lines are not cut."""
    out = PlainConsole(stderr=stderr)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = 160
    return out


def print_json(messages: Message | Sequence[Message]) -> None:
    """Print a message, or several as a list, with the field names of the proto."""
    if isinstance(messages, Message):
        print(json.dumps(_as_dict(messages), indent=2))
    else:
        print(json.dumps([_as_dict(message) for message in messages], indent=2))


def _as_dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def dtype_name(dtype: int) -> str:
    """Such as "float32"."""
    return tensor_pb2.DataType.Name(tensor_pb2.DataType.ValueType(dtype)).removeprefix("DATA_TYPE_").lower()


def shape_text(dtype: int, dims: Sequence[int]) -> str:
    """Such as "float32[6]"."""
    return dtype_name(dtype) + (f"[{', '.join(map(str, dims))}]" if dims else "")


def seconds(duration: Duration) -> float:
    """A duration in seconds."""
    return duration.ToTimedelta().total_seconds()


def span(value: float) -> str:
    """Seconds for people: "850 ms", "12.5 s", "0:10:00"."""
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.3g} s" if value < 100 else str(datetime.timedelta(seconds=round(value)))


def size(value: float) -> str:
    """Bytes for people: "1 KiB"."""
    if value < 1024:
        return f"{value:.0f} B"
    power = min(int(math.log(value, 1024)), 4)
    return f"{value / 1024**power:.4g} {' KMGT'[power]}iB"


def milliseconds(value: float) -> str:
    """Seconds as milliseconds, to three digits: "0.042 ms", "1.31 ms", "215 ms"."""
    ms = value * 1e3
    return f"{ms:.{3 if ms < 1 else 2 if ms < 10 else 1 if ms < 100 else 0}f} ms"
