"""What is taken from a connection before anything is known of who is at its other end."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter, validators

_Positive = Annotated[int, Parameter(validator=validators.Number(gte=1))]
_MoreThanZero = Annotated[float, Parameter(validator=validators.Number(gte=0.1))]
_Seconds = Annotated[float, Parameter(validator=validators.Number(gte=0))]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one connection may take, and all of them together; times are in seconds."""

    max_message_mb: _Positive = 16
    """Largest message that is taken in, in MiB."""
    max_header_kb: _Positive = 16
    """Headers of one call, in KiB: the token is among them."""
    max_connections: _Positive = 20_000
    """Connections at once; more are closed."""
    max_streams_per_connection: _Positive = 4096
    """Calls and streams at once on one connection; more wait in the client."""
    max_sessions_per_stream: _Positive = 10_000
    """Sessions that were opened on one stream, or sequences that began on it, and are not closed."""
    handshake_timeout: _MoreThanZero = 10.0
    """A new connection must have come to its first call's headers by then, a call without a token to its message."""
    keepalive: _MoreThanZero = 60.0
    """A connection on which nothing comes for so long is asked whether it is still there; without an answer it is
    closed after as long again, and at most 20 seconds."""
    max_connection_idle: _Seconds = 900.0
    """A connection without a call is closed after so long; 0: never."""
    max_connection_age: _Seconds = 0.0
    """A connection takes no new calls after so long, and after as long again, but at most a minute, its streams are
    ended; 0: never."""
    slow_reader_timeout: _Seconds = 60.0
    """A stream whose caller takes nothing in for so long is ended; 0: never."""
