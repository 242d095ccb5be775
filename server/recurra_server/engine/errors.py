"""What can go wrong, each with the stable reason that callers see (docs/errors.md)."""

from typing import ClassVar


def shown(text: str) -> str:
    """A caller's text as it may stand in an error: quoted, and cut where it is long."""
    return repr(text if len(text) <= 64 else text[:63] + "…")


def one_line(error: Exception) -> str:
    """An exception for people: the first line of what it says, or what it is."""
    return (str(error).splitlines() or [type(error).__name__])[0][:500]


class EngineError(Exception):
    """A failure that a caller can act on.

    Attributes:
        reason: Stable name of the cause.
        message: What was wrong, what was expected, what to do.
        metadata: The facts in the message, for programs.
        retry_after: Seconds after which the same request may succeed, or None.
    """

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, retry_after: float | None = None, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.metadata = {key: str(value) for key, value in metadata.items() if value is not None}


class SessionNotFoundError(EngineError):
    """No session has this id."""

    reason = "SESSION_NOT_FOUND"


class SessionExpiredError(EngineError):
    """The session went unused for longer than its idle timeout."""

    reason = "SESSION_EXPIRED"


class SessionExistsError(EngineError):
    """A session with this id is already open."""

    reason = "SESSION_EXISTS"


class SessionMovedError(EngineError):
    """Another server has taken the session over."""

    reason = "SESSION_MOVED"


class StoreUnavailableError(EngineError):
    """The store of checkpoints cannot be reached, and the request cannot be answered without it."""

    reason = "STORE_UNAVAILABLE"


class SessionIdError(EngineError):
    """The session id is malformed."""

    reason = "SESSION_ID"


class SessionChangedError(EngineError):
    """The session is not where it was left by what was to go on with it."""

    reason = "SESSION_CHANGED"


class StepGapError(EngineError):
    """The step's number is past the next one."""

    reason = "STEP_GAP"


class StepNotHeldError(EngineError):
    """The step was applied before and its reply is not kept."""

    reason = "STEP_NOT_HELD"


class InputNameError(EngineError):
    """An input is missing, unknown or given twice."""

    reason = "INPUT_NAME"


class InputDtypeError(EngineError):
    """An input's dtype is not the model's."""

    reason = "INPUT_DTYPE"


class InputShapeError(EngineError):
    """An input's shape or number of bytes is not what the model takes."""

    reason = "INPUT_SHAPE"


class InputNotFiniteError(EngineError):
    """An input holds NaN or infinity."""

    reason = "INPUT_NOT_FINITE"


class InputRefusedError(EngineError):
    """The model itself fails on this input."""

    reason = "INPUT_REFUSED"


class StateNotFiniteError(EngineError):
    """The step would make the session's states NaN or infinite."""

    reason = "STATE_NOT_FINITE"


class ChunkLengthError(EngineError):
    """A chunk has no steps or too many."""

    reason = "CHUNK_LENGTH"


class SnapshotInvalidError(EngineError):
    """Bytes that are no snapshot, or one that holds what no session can hold."""

    reason = "SNAPSHOT_INVALID"


class SnapshotMismatchError(EngineError):
    """A snapshot of another model."""

    reason = "SNAPSHOT_MISMATCH"


class ModelNotFoundError(EngineError):
    """No such model or version is loaded."""

    reason = "MODEL_NOT_FOUND"


class ModelRefusedError(EngineError):
    """A model's files cannot be loaded; what was served before goes on."""

    reason = "MODEL_REFUSED"


class NoFeedbackError(EngineError):
    """The model does not say how an output becomes an input."""

    reason = "NO_FEEDBACK"


class InvalidRequestError(EngineError):
    """A field has a value that is not allowed."""

    reason = "INVALID_REQUEST"


class UnauthenticatedError(EngineError):
    """The caller does not say who they are, or it is not believed."""

    reason = "UNAUTHENTICATED"


class ForbiddenError(EngineError):
    """The caller may not do this."""

    reason = "FORBIDDEN"


class UnsupportedError(EngineError):
    """The protocol has this call, and this server has not."""

    reason = "UNSUPPORTED"


class CapacityError(EngineError):
    """A bound is reached."""

    reason = "CAPACITY"


class DrainingError(EngineError):
    """The server shuts down."""

    reason = "DRAINING"


class DeadlineError(EngineError):
    """The step's deadline passed before it was run."""

    reason = "DEADLINE"


class InternalError(EngineError):
    """A bug or a broken machine; carries no inside detail."""

    reason = "INTERNAL"
