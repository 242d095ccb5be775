"""How the messages of all calls are read: what cannot be becomes an error of its call.

What reads for itself, stream or open call, meets an `InvalidRequestError` where it reads. A unary request is read
before its method is called, and what its deserializer raises grpc.aio answers with UNKNOWN and Python's own words, and
logs a trace: so there the error is handed over in the place of the request, and `guarded` answers it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from recurra_server.engine.errors import InvalidRequestError
from recurra_server.rpc.access import OPEN
from recurra_server.rpc.open_calls import OpenCalls


class _Server(Protocol):
    """What handlers are added to."""

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Register handlers that look up their methods."""
        ...


class SafeDeserializers:
    """Stands for a server where servicers are added to it.

    Args:
        server: The server.
        open_calls: Reads the messages of what everybody may call.
    """

    def __init__(self, server: _Server, open_calls: OpenCalls) -> None:
        self._server = server
        self._open_calls = open_calls

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Nothing: generated code tells the methods themselves, too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Register the methods of a service."""
        reading = {name: self._reading(f"/{service}/{name}", handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, reading)])

    def _reading(self, method: str, handler: Any) -> Any:
        read = _refusing(handler.request_deserializer)
        if method in OPEN:
            return self._open_calls.bounded(handler._replace(request_deserializer=read))
        if not handler.request_streaming:
            read = _handing_over(read)
        return handler._replace(request_deserializer=read)


def _refusing(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decode(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError as error:
            raise InvalidRequestError(f"the message cannot be read: {error}", field="message") from None

    return decode


def _handing_over(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decode(data: bytes) -> Any:
        try:
            return read(data)
        except InvalidRequestError as error:
            return error

    return decode
