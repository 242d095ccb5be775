"""What can go wrong, as exceptions. Each carries the stable `reason` of docs/errors.md.

Catch `RecurraError` for all of them, or the class of what you can do something about.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Final

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from recurra.v1 import error_pb2

_DOMAIN: Final = "recurra"
_CODES: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


class RecurraError(Exception):
    """A call failed.

    Attributes:
        reason: Stable name of the cause, such as ``SESSION_EXPIRED``; the gRPC status code's name where
            the failure did not come from a Recurra server.
        code: The gRPC status code.
        message: For people: what was wrong, what was expected, what to do.
        metadata: For programs: the facts in the message, such as ``{"expected_step": "12"}``.
        retry_after: Seconds after which the same call may succeed; None where it will not.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        code: grpc.StatusCode,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.code = code
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} [{self.reason}]"


class SessionNotFoundError(RecurraError):
    """No session has this id: it was closed, it expired, or its server is gone. Open a new one."""


class SessionExpiredError(SessionNotFoundError):
    """The session went unused for longer than its idle timeout."""


class SessionLostError(SessionNotFoundError):
    """The server that goes on with the session lacks more of its steps than this client still has. Open a new one."""


class SessionExistsError(RecurraError):
    """A session with this id is already open."""


class SessionChangedError(RecurraError):
    """The session was reset, rewound or stepped by others while it generated: generate again from where it stands."""


class StepGapError(RecurraError):
    """The step's number is past the next one: somebody else's steps are missing, or the session was reset."""


class StepNotHeldError(RecurraError):
    """The step was applied and its reply is not kept: it was somebody else's, or its answer was lost. Send the next."""


class InputError(RecurraError, ValueError):
    """The input does not fit the model, or a value is not allowed: the same call will fail again."""


class StateNotFiniteError(RecurraError):
    """The step would have made the session's memory NaN or infinite. Leave it out, or reset the session."""


class ModelNotFoundError(RecurraError):
    """No such model or version is loaded."""


class ModelRefusedError(RecurraError):
    """A model's files cannot be loaded; what the server had loaded before goes on."""


class NoFeedbackError(RecurraError):
    """The model does not say how an output becomes an input, so it cannot generate."""


class CapacityError(RecurraError):
    """A bound of the server is reached. Try again after `retry_after` seconds."""


class UnavailableError(RecurraError, ConnectionError):
    """The server cannot be reached."""


class SessionMovedError(UnavailableError):
    """Another server has taken the session over: it goes on there, and here after it was taken back."""


class StoreUnavailableError(UnavailableError):
    """The server cannot reach its store of checkpoints, and this call cannot be answered without it."""


class DrainingError(UnavailableError):
    """The server shuts down and opens no new sessions."""


class DeadlineExceededError(RecurraError, TimeoutError):
    """No answer came in time."""


class ClientClosedError(RecurraError):
    """The client was closed, before the call or during it: make another."""


class InternalError(RecurraError):
    """A bug in the server, or a broken machine; the server's log has the trace."""


class UnauthenticatedError(RecurraError):
    """The server wants to know who calls, and was not told, or does not believe it."""


class ForbiddenError(RecurraError):
    """The caller may not do this."""


class SnapshotError(RecurraError):
    """The bytes are no snapshot, or one of another model."""


_BY_REASON: Final[dict[str, type[RecurraError]]] = {
    "SESSION_NOT_FOUND": SessionNotFoundError,
    "SESSION_EXPIRED": SessionExpiredError,
    "SESSION_EXISTS": SessionExistsError,
    "SESSION_MOVED": SessionMovedError,
    "STORE_UNAVAILABLE": StoreUnavailableError,
    "SESSION_ID": InputError,
    "SESSION_CHANGED": SessionChangedError,
    "STEP_GAP": StepGapError,
    "STEP_NOT_HELD": StepNotHeldError,
    "INPUT_NAME": InputError,
    "INPUT_DTYPE": InputError,
    "INPUT_SHAPE": InputError,
    "INPUT_NOT_FINITE": InputError,
    "INPUT_REFUSED": InputError,
    "STATE_NOT_FINITE": StateNotFiniteError,
    "CHUNK_LENGTH": InputError,
    "SNAPSHOT_INVALID": SnapshotError,
    "SNAPSHOT_MISMATCH": SnapshotError,
    "MODEL_NOT_FOUND": ModelNotFoundError,
    "MODEL_REFUSED": ModelRefusedError,
    "NO_FEEDBACK": NoFeedbackError,
    "UNAUTHENTICATED": UnauthenticatedError,
    "FORBIDDEN": ForbiddenError,
    "UNSUPPORTED": InputError,
    "INVALID_REQUEST": InputError,
    "CAPACITY": CapacityError,
    "DRAINING": DrainingError,
    "DEADLINE": DeadlineExceededError,
    "INTERNAL": InternalError,
}
# For failures without a reason of ours: the network, a proxy, or a server that is not Recurra.
# CANCELLED is what a stream gets whose server or proxy drops it (that we cancelled ourselves is no error);
# INTERNAL is what the gRPC library itself says of a connection that breaks in the middle of a message.
_BY_CODE: Final[dict[grpc.StatusCode, type[RecurraError]]] = {
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.INTERNAL: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: ForbiddenError,
}


def from_message(error: error_pb2.Error) -> RecurraError:
    """The exception for a failure that came inside a message: a step of a stream, a row of a batch."""
    code = _CODES.get(error.code, grpc.StatusCode.UNKNOWN)
    retry_after = error.retry_after.ToTimedelta().total_seconds() if error.HasField("retry_after") else None
    return _make(error.message, error.reason, code, error.metadata, retry_after)


@contextlib.contextmanager
def rpc_errors() -> Iterator[None]:
    """Raise what gRPC raises of a call as one of the above."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from None
    except grpc.aio.UsageError:  # the call was not begun
        raise _client_closed() from None
    except asyncio.CancelledError:
        # A call that ends with its channel says so as if somebody had cancelled the task that waits for it.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _client_closed() from None


def from_rpc(error: grpc.aio.AioRpcError) -> RecurraError:
    """The exception for a call that failed as a whole, from its status and google.rpc details."""
    reason, metadata, retry_after = "", dict[str, str](), None
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # details that contradict the status: not from a server of ours
        status = None
    for detail in status.details if status is not None else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == _DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    return _make(error.details() or "no details were given", reason, error.code(), metadata, retry_after)


def invalid_input(message: str, reason: str, **metadata: object) -> InputError:
    """An input that is refused here already, as the server would have."""
    facts = {key: str(value) for key, value in metadata.items()}
    return InputError(message, reason=reason, code=grpc.StatusCode.INVALID_ARGUMENT, metadata=facts)


def _client_closed() -> ClientClosedError:
    code = grpc.StatusCode.FAILED_PRECONDITION
    return ClientClosedError("the client is closed: make another", reason="CLIENT_CLOSED", code=code)


def _make(
    message: str, reason: str, code: grpc.StatusCode, metadata: Mapping[str, str], retry_after: float | None
) -> RecurraError:
    kind = _BY_REASON.get(reason, RecurraError) if reason else _BY_CODE.get(code, RecurraError)
    return kind(message, reason=reason or code.name, code=code, metadata=metadata, retry_after=retry_after)
