"""grpc.reflection: what can be called here, for tools that do not know."""

from collections.abc import Iterable
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection

from recurra_server.rpc.status import guarded
from recurra_server.rpc.stream_base import OpenStreams
from recurra_server.telemetry.metrics import EdgeCounts


class ReflectionServicer(reflection.aio.ReflectionServicer):  # type: ignore[misc]
    """The one of grpcio-reflection, whose callers must read, and be let in for as long as they ask."""

    def __init__(self, names: Iterable[str], edge: EdgeCounts, streams: OpenStreams) -> None:
        super().__init__(names)
        self.edge = edge
        self._streams = streams

    @guarded
    async def ServerReflectionInfo(self, request_iterator: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Answer each question."""
        await self._streams.answer(super().ServerReflectionInfo(request_iterator, context), context)
