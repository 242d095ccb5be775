"""Messages that cannot be read become errors of their calls.

grpc.aio answers a unary request that its deserializer refuses with UNKNOWN and Python's own words, and logs a trace. So
the deserializers here do not raise: they hand the error over in the place of the request, and `guarded` answers it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError


class _Server(Protocol):
    """What handlers are added to."""

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Register handlers that look up their methods."""
        ...


class SafeDeserializers:
    """Stands for a server where servicers are added to it.

    Args:
        server: The server.
        foreign: They are not `guarded`: they get an empty message in place of one that cannot be read.
    """

    def __init__(self, server: _Server, *, foreign: bool = False) -> None:
        self._server = server
        self._foreign = foreign

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Nothing: generated code tells the methods themselves, too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Register the methods of a service."""
        reading = {name: self._reading(handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, reading)])

    def _reading(self, handler: Any) -> Any:
        if handler.request_streaming:  # streams see to it themselves
            return handler
        return handler._replace(request_deserializer=self._handing_over(handler.request_deserializer))

    def _handing_over(self, read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def decode(data: bytes) -> Any:
            try:
                return read(data)
            except DecodeError as error:
                return read(b"") if self._foreign else error

        return decode
