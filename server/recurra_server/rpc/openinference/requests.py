"""What a request asks for: whose step it is, and what its parameters say."""

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Final, Protocol

from recurra.openinference import open_inference_pb2 as pb

from recurra_server.engine.accounts import Account
from recurra_server.engine.errors import (
    EngineError,
    InvalidRequestError,
    SessionExpiredError,
    SessionNotFoundError,
    shown,
)
from recurra_server.engine.steps import Step
from recurra_server.rpc.opened import Opened
from recurra_server.rpc.openinference.codec import Codec, Lead
from recurra_server.tracecontext import Trace

_MAX_PARAMETERS: Final = 64
_LONGEST_ID: Final = 1024
_LONGEST_SEQUENCE_ID: Final = 128
_PLAIN: Final = re.compile(r"[A-Za-z0-9._-]{1,62}")
SequenceId = int | str


class Caller(Protocol):
    """Who waits for inferences: a call or a stream. It is the `Waiter` of their steps."""

    gone: bool
    trace: Trace | None
    account: Account | None
    """Whose sequences it sees; None where callers are not told apart."""
    leases: set[ExitStack]
    """Sessions whose first step is not answered: to be closed should nobody wait for it any more."""

    @property
    def opened(self) -> Opened | None:
        """The sequences that it has begun; None for a call, which begins one at most."""
        ...

    def answered(self, step: Any) -> None:
        """Take an inference: `outputs` or `error` is set. Must not raise, and call its `finish` if it has one."""
        ...


class Inference(Step):
    """A request on its way, and the step that it asks for: `session`, `inputs` and `count` are set once they are known.

    Attributes:
        waiter: Who is answered.
        id: The caller's name for the request.
        model_name, version: As asked for; the version may be empty.
        sequence: The caller's id of the sequence; None for one that begins and ends with this request.
        start, end: Whether the sequence begins, and ends, with this request.
        codec: What read its tensors, and will write its answer.
        lead: What the codec made of its tensors.
        finish: To be called after it was answered, with itself.
    """

    codec: Codec
    lead: Lead = ()
    start = end = False
    deadline = float("inf")
    finish: "Callable[[Inference], None] | None" = None
    waiter: Caller

    def __init__(
        self, caller: Caller, request: pb.ModelInferRequest, sequence: SequenceId | None, arrived: float
    ) -> None:
        self.waiter = caller
        self.id = request.id
        self.model_name = request.model_name
        self.version = request.model_version
        self.sequence = sequence
        self.arrived = arrived

    def fail(self, error: EngineError) -> None:
        """Answer with an error."""
        self.error = error
        self.waiter.answered(self)

    def explain(self, error: EngineError) -> EngineError:
        """Say of a session that is not there what that means for the sequence."""
        if self.sequence is None or not isinstance(error, SessionNotFoundError | SessionExpiredError):
            return error
        ago = error.metadata.get("expired_seconds_ago")
        what = f"expired {ago} s ago" if ago else "has no step before this one (it has ended, or never began)"
        whose = f"sequence {shown_id(self.sequence)} of model {shown(self.model_name)}"
        facts: dict[str, Any] = {**error.metadata, "sequence_id": self.sequence}
        return type(error)(f"{whose} {what}; its first step must have sequence_start", **facts)


def read_request(request: pb.ModelInferRequest, caller: Caller, now: float) -> Inference:
    """Read everything of a request but its tensors.

    Parameters that are not known are passed over: other servers' models have such of their own.

    Raises:
        InvalidRequestError: A parameter has a value that is not allowed.
    """
    parameters = request.parameters
    if len(parameters) > _MAX_PARAMETERS:
        raise InvalidRequestError(
            f"a request has at most {_MAX_PARAMETERS} parameters, not {len(parameters)}", field="parameters"
        )
    # One by one, which is quicker than to go through them.
    known = parameters.get("sequence_id")
    inference = Inference(caller, request, None if known is None else _sequence(known), now)
    if len(inference.id) > _LONGEST_ID:
        raise InvalidRequestError(f"id has at most {_LONGEST_ID} characters, not {len(inference.id)}", field="id")
    start, end = parameters.get("sequence_start"), parameters.get("sequence_end")
    if start is not None:
        inference.start = _flag(start, "sequence_start")
    if end is not None:
        inference.end = _flag(end, "sequence_end")
    if len(parameters) > (known is not None) + (start is not None) + (end is not None):
        _read_others(parameters, inference)
    if inference.sequence is None:
        if inference.start or inference.end:
            raise InvalidRequestError(
                "sequence_start and sequence_end need a sequence_id that is neither 0 nor empty", field="sequence_id"
            )
        inference.start = inference.end = True
    return inference


def _read_others(parameters: Mapping[str, pb.InferParameter], inference: Inference) -> None:
    """Read the parameters that are seldom sent."""
    timeout, priority = parameters.get("timeout"), parameters.get("priority")
    if timeout is not None and (microseconds := _count(timeout, "timeout")):
        inference.deadline = inference.arrived + microseconds / 1e6
    if priority is not None:
        _count(priority, "priority")
    final = parameters.get("triton_enable_empty_final_response")
    if final is not None:
        _flag(final, "triton_enable_empty_final_response")


def _sequence(parameter: pb.InferParameter) -> SequenceId | None:
    if (number := parameter.int64_param) or parameter.HasField("int64_param"):
        return number or None
    if parameter.HasField("uint64_param"):
        return parameter.uint64_param or None
    if not parameter.HasField("string_param"):
        raise _kind(parameter, "sequence_id", "int64_param or string_param")
    text = parameter.string_param
    if len(text) > _LONGEST_SEQUENCE_ID:
        raise InvalidRequestError(
            f"a sequence_id has at most {_LONGEST_SEQUENCE_ID} characters, not {len(text)}", field="sequence_id"
        )
    return text or None


def _flag(parameter: pb.InferParameter, name: str) -> bool:
    if not (flag := parameter.bool_param) and not parameter.HasField("bool_param"):
        raise _kind(parameter, name, "bool_param")
    return flag


def _count(parameter: pb.InferParameter, name: str) -> int:
    if parameter.HasField("uint64_param"):
        return parameter.uint64_param
    if not parameter.HasField("int64_param"):
        raise _kind(parameter, name, "int64_param or uint64_param")
    if parameter.int64_param < 0:
        raise InvalidRequestError(f"parameter {name} must not be negative", field=name)
    return parameter.int64_param


def _kind(parameter: pb.InferParameter, name: str, expected: str) -> InvalidRequestError:
    given = parameter.WhichOneof("parameter_choice") or "unset"
    return InvalidRequestError(f"parameter {name} must be {expected}, not {given}", field=name)


def session_id(model: str, sequence: SequenceId) -> str:
    """The session that a sequence is: "lstm:7" for 7 and "lstm::call-7" for "call-7".

    A text that is no session id is hashed, so that every text is one of its own.
    """
    if isinstance(sequence, int):
        return f"{model}:{sequence}"
    if _PLAIN.fullmatch(sequence):
        return f"{model}::{sequence}"
    return f"{model}:::{hashlib.blake2b(sequence.encode(), digest_size=16).hexdigest()}"


def shown_id(sequence: SequenceId) -> str:
    """A sequence's id as it may stand in an error."""
    return str(sequence) if isinstance(sequence, int) else shown(sequence)
