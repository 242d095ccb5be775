"""What is asked of a load, and what came of it."""

import ssl
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from recurra.v1 import models_pb2, sessions_pb2

Api = Literal["stream", "unary", "batch"]
PATIENCE: Final = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files, as in `recurra_client.tls`."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """For HTTP/2.

        Raises:
            OSError: A file cannot be read.
        """
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        context.set_alpn_protocols(["h2"])
        return context


@dataclass(frozen=True, slots=True)
class Plan:
    """A load. Times are in seconds."""

    target: str
    """HOST:PORT."""
    model: models_pb2.Model
    api: Api = "stream"
    """Stream: a StreamSteps stream for each session. Unary: a call a step. Batch: all sessions in one StepBatch."""
    sessions: int = 1
    seconds: float = 5.0
    """How long it is measured, after the warm-up."""
    warmup: float = 0.5
    patience: float = PATIENCE
    """How long what is not answered by then is waited for; and the closing of the sessions."""
    pace: float = 0.0
    """From one step of a session to its next (open loop); 0: as soon as the one before is answered (closed loop)."""
    arrivals: float = 500.0
    """In an open loop: sessions that are opened in a second. Each steps from then on."""
    chunk: int = 1
    """Steps in one message of a session."""
    connections: int = 0
    """TCP connections that the sessions share; 0: one each."""
    durability: sessions_pb2.Durability.ValueType = sessions_pb2.DURABILITY_UNSPECIFIED
    """Of the sessions; unspecified: as the server has it."""
    outputs: tuple[str, ...] = ()
    """The outputs that each step asks for by name; empty: those that are answered by default."""
    tls: Tls | None = None
    """How connections are encrypted; None: not at all."""
    token: str = ""
    """Shows the server who calls."""
    in_flight: int = 1
    """In a closed loop: messages sent and not yet answered, of each session; or in all, if they are batches."""


@dataclass(slots=True)
class Outcome:
    """What came of a load. Times are in seconds."""

    steps: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    """Processor time that the load generator itself took, in the time that was measured."""
    refused: Counter[str] = field(default_factory=Counter)
    """Sessions that were not opened, by reason: CAPACITY, or UNANSWERED where the server did not even refuse them."""
    errors: Counter[str] = field(default_factory=Counter)
    """Failed messages by reason; UNANSWERED are those that were given up."""
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    """Of each message. In an open loop, from when it was due."""
    lateness: "array[float]" = field(default_factory=lambda: array("d"))
    """Of each message of an open loop: from when it was due until it was sent. The load generator's own share."""
