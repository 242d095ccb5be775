"""What the call that is being served is part of.

Set by the tracing where there is any, and kept by whoever waits for the call's steps: so whoever looks at a batch can
tell whose its steps are. Where nothing is traced it costs a look-up in a call, and nothing in a step.
"""

from contextvars import ContextVar
from typing import NamedTuple


class Trace(NamedTuple):
    """The caller's trace.

    Attributes:
        context: Its span, as OpenTelemetry has it.
        id: Its number as 32 hexadecimal digits; empty where the caller has none.
    """

    context: object
    id: str


TRACE: ContextVar[Trace | None] = ContextVar("TRACE", default=None)


def trace_of(waiter: object) -> Trace | None:
    """The trace of whoever waits for a step."""
    trace: Trace | None = getattr(waiter, "trace", None)
    return trace
