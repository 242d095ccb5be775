"""What of a session outlives its server, by the names that callers use."""

from typing import Final, Literal

from recurra.v1 import sessions_pb2

Durability = Literal["", "ephemeral", "async", "sync"]
DURABILITIES: Final = {
    "": sessions_pb2.DURABILITY_UNSPECIFIED,
    "ephemeral": sessions_pb2.DURABILITY_EPHEMERAL,
    "async": sessions_pb2.DURABILITY_ASYNC,
    "sync": sessions_pb2.DURABILITY_SYNC,
}
