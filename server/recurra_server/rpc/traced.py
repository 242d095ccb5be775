"""Reads what each call is part of, where traces are kept."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import structlog

from recurra_server.tracecontext import TRACE, Trace

_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class TraceReader(grpc.aio.ServerInterceptor):
    """Puts each call's trace where its steps and its logs find it: the call goes on in the same task.

    Args:
        read: Finds the trace in a call's metadata.
    """

    def __init__(self, read: Callable[[Mapping[str, str]], Trace]) -> None:
        self._read = read

    async def intercept_service(self, continuation: _Continuation, handler_call_details: Any) -> Any:
        """Read, and go on."""
        metadata = handler_call_details.invocation_metadata or ()
        trace = self._read({key: value for key, value in metadata if isinstance(value, str)})
        TRACE.set(trace)
        structlog.contextvars.clear_contextvars()
        if trace.id:
            structlog.contextvars.bind_contextvars(trace_id=trace.id)
        return await continuation(handler_call_details)
