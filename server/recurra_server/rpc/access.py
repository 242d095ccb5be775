"""Lets a call in only if whoever makes it may: once, before its first message is read.

Installed only where there is an access file; without it no call passes here.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc

from recurra_server.engine.errors import EngineError
from recurra_server.rpc.status import abort, to_engine_error
from recurra_server.security.access import Access, nobody
from recurra_server.security.identity import CALLER, Identity, Role
from recurra_server.telemetry.metrics import EdgeCounts

_Context = grpc.aio.ServicerContext[Any, Any]
_OIP: Final = "/inference.GRPCInferenceService/"

OPEN: Final = frozenset({
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    f"{_OIP}ServerLive",
    f"{_OIP}ServerReady",
})  # fmt: skip
"""What everybody may call: whether the server is there, for whoever watches over it."""

_PREDICT: Final = {
    "/recurra.v1.ModelsService/": ("ListModels", "GetModel"),
    "/recurra.v1.SessionsService/": (
        "OpenSession", "GetSession", "ListSessions", "ResetSession", "CloseSession", "ForkSession",
    ),
    "/recurra.v1.InferenceService/": ("Step", "StreamSteps", "StepBatch", "Predict", "Generate"),
    _OIP: (
        "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics", "ModelInfer",
        "ModelStreamInfer", "RepositoryIndex",
    ),
    "/grpc.reflection.v1alpha.ServerReflection/": ("ServerReflectionInfo",),
    "/grpc.reflection.v1.ServerReflection/": ("ServerReflectionInfo",),
}  # fmt: skip
_PREDICT_METHODS: Final = frozenset(service + name for service, names in _PREDICT.items() for name in names)


def role_for(method: str) -> Role:
    """What a call needs; one that is not known here needs most."""
    return Role.PREDICT if method in _PREDICT_METHODS else Role.OPERATE


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Finds out who calls and sets `CALLER` for the call."""

    def __init__(self, access: Access, edge: EdgeCounts) -> None:
        self._access = access
        self._edge = edge

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        """Answer with the method itself, or with one that refuses."""
        method: str = details.method
        handler = await continuation(details)
        if handler is None or method in OPEN:
            return handler
        authorization = [value for name, value in details.invocation_metadata or () if name == "authorization"]
        try:
            identity = await self._access.by_token(authorization)
            if identity is None and not self._access.has_certificates:
                raise nobody()
            if identity is None or identity.certificate is not None:
                # Which certificate they have is known only where the call is served.
                return self._check_certificate(handler, role_for(method), identity)
            self._access.check(identity, role_for(method))
        except Exception as error:
            return self._refusal(to_engine_error(error))
        CALLER.set(identity)
        return handler

    def _refusal(self, error: EngineError) -> Any:
        """A method that refuses, of the kind that reads no message first."""

        async def refuse(_: object, context: _Context) -> None:
            self._edge.count_error(error)
            await abort(context, error)

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _check_certificate(self, handler: Any, role: Role, identity: Identity | None) -> Any:
        """The method, behind a look at the caller's certificate."""

        async def check(context: _Context) -> None:
            peer = {name: list(values) for name, values in (context.auth_context() or {}).items()}
            try:
                access = self._access
                who = access.by_certificate(peer) if identity is None else access.with_certificate(identity, peer)
                access.check(who, role)
            except EngineError as error:
                self._edge.count_error(error)
                await abort(context, error)
            CALLER.set(who)

        return _behind(check, handler)


def _behind(check: Callable[[_Context], Awaitable[None]], handler: Any) -> Any:
    """A method that checks its context first, before it reads a message: so it is of the kind that reads for itself."""
    method = next(
        found
        for found in (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
        if found is not None
    )

    async def call(requests: Any, context: _Context) -> None:
        await check(context)
        request = requests if handler.request_streaming else await context.read()
        if request is grpc.aio.EOF:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "there is no message")
        if handler.response_streaming:
            await method(request, context)
        else:
            await context.write(await method(request, context))

    return grpc.stream_stream_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)
