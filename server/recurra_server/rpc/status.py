"""The translation table from the engine's errors to gRPC's, and the guard round every call."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from recurra.v1 import error_pb2

from recurra_server.engine import errors
from recurra_server.engine.errors import EngineError
from recurra_server.telemetry.metrics import EdgeCounts

_log = structlog.get_logger(__name__)
_DOMAIN = "recurra"
_Code = grpc.StatusCode
_Response = TypeVar("_Response")

CODES: dict[type[EngineError], grpc.StatusCode] = {
    errors.SessionNotFoundError: _Code.NOT_FOUND,
    errors.SessionExpiredError: _Code.NOT_FOUND,
    errors.SessionExistsError: _Code.ALREADY_EXISTS,
    errors.SessionMovedError: _Code.UNAVAILABLE,
    errors.StoreUnavailableError: _Code.UNAVAILABLE,
    errors.SessionIdError: _Code.INVALID_ARGUMENT,
    errors.SessionChangedError: _Code.FAILED_PRECONDITION,
    errors.StepGapError: _Code.FAILED_PRECONDITION,
    errors.StepNotHeldError: _Code.FAILED_PRECONDITION,
    errors.InputNameError: _Code.INVALID_ARGUMENT,
    errors.InputDtypeError: _Code.INVALID_ARGUMENT,
    errors.InputShapeError: _Code.INVALID_ARGUMENT,
    errors.InputNotFiniteError: _Code.INVALID_ARGUMENT,
    errors.InputRefusedError: _Code.INVALID_ARGUMENT,
    errors.StateNotFiniteError: _Code.FAILED_PRECONDITION,
    errors.ChunkLengthError: _Code.INVALID_ARGUMENT,
    errors.SnapshotInvalidError: _Code.INVALID_ARGUMENT,
    errors.SnapshotMismatchError: _Code.FAILED_PRECONDITION,
    errors.ModelNotFoundError: _Code.NOT_FOUND,
    errors.ModelRefusedError: _Code.FAILED_PRECONDITION,
    errors.NoFeedbackError: _Code.FAILED_PRECONDITION,
    errors.InvalidRequestError: _Code.INVALID_ARGUMENT,
    errors.UnauthenticatedError: _Code.UNAUTHENTICATED,
    errors.ForbiddenError: _Code.PERMISSION_DENIED,
    errors.UnsupportedError: _Code.UNIMPLEMENTED,
    errors.CapacityError: _Code.RESOURCE_EXHAUSTED,
    errors.DrainingError: _Code.UNAVAILABLE,
    errors.DeadlineError: _Code.DEADLINE_EXCEEDED,
    errors.InternalError: _Code.INTERNAL,
}


def to_engine_error(error: Exception) -> EngineError:
    """What a caller may know of an exception: an unexpected one is logged with its trace and stays inside."""
    if isinstance(error, EngineError):
        # The frames that it came through hold the request, and one of them will hold the error: a circle that
        # would keep large requests in memory until it is found.
        return error.with_traceback(None)
    _log.error("unexpected", exc_info=error)
    return errors.InternalError("the call failed inside the server; its log tells more")


def to_message(error: EngineError) -> error_pb2.Error:
    """An error inside a stream or a batch."""
    message = error_pb2.Error(
        code=CODES[type(error)].value[0], reason=error.reason, message=error.message, metadata=error.metadata
    )
    if error.retry_after is not None:
        message.retry_after.FromNanoseconds(int(error.retry_after * 1e9))
    return message


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: EngineError) -> NoReturn:
    """End a call with an error: its status, and google.rpc.ErrorInfo and RetryInfo in the details."""
    code = CODES[type(error)]
    status = status_pb2.Status(code=code.value[0], message=error.message)
    status.details.append(
        _pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=_DOMAIN, metadata=error.metadata))
    )
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        status.details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    await context.abort(code, error.message, (("grpc-status-details-bin", status.SerializeToString()),))


def guarded(
    method: Callable[[Any, Any, Any], Awaitable[_Response]],
) -> Callable[[Any, Any, Any], Awaitable[_Response]]:
    """Answer what a servicer's method raises with a status.

    The servicer must have an attribute `edge`, where errors are counted.
    """

    @functools.wraps(method)
    async def call(servicer: Any, request: Any, context: Any) -> _Response:
        try:
            if isinstance(request, EngineError):  # see `deserializers`
                raise request
            return await method(servicer, request, context)
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            raise
        except grpc.aio.InternalError:
            raise asyncio.CancelledError from None  # the caller has gone in the middle of an answer
        except Exception as error:
            known = to_engine_error(error)
            edge: EdgeCounts = servicer.edge
            edge.count_error(known)
            del request  # gRPC's context keeps the error of an aborted call, and that keeps this frame
            await abort(context, known)

    return call


def _pack(detail: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
