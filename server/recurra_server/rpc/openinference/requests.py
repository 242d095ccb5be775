"""What a request asks for: whose step it is, and what its parameters say."""

import hashlib
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from recurra.openinference import open_inference_pb2 as pb

from recurra_server.engine.errors import (
    EngineError,
    InvalidRequestError,
    SessionExpiredError,
    SessionNotFoundError,
    shown,
)
from recurra_server.engine.steps import Buffer, Step
from recurra_server.rpc.openinference.codec import Codec, Lead

_MAX_PARAMETERS: Final = 64
_LONGEST_ID: Final = 1024
_LONGEST_SEQUENCE_ID: Final = 128
_PLAIN: Final = re.compile(r"[A-Za-z0-9._-]{1,62}")
_KINDS: Final = {
    "sequence_id": ("int64_param", "string_param", "uint64_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "timeout": ("int64_param", "uint64_param"),
    "priority": ("int64_param", "uint64_param"),
    "triton_enable_empty_final_response": ("bool_param",),
}
SequenceId = int | str


class Caller(Protocol):
    """Who is answered: a call or a stream."""

    gone: bool
    leases: set[ExitStack]
    """What is to be given back should nobody wait any more."""

    def reply(self, inference: "Inference") -> None:
        """Take an answer: `outputs` or `error` is set. Must not raise."""
        ...


@dataclass(slots=True, eq=False)
class Inference:
    """A request on its way. It is the `Waiter` of its own step.

    Attributes:
        caller: Who is answered.
        id: The caller's name for the request.
        model_name, version: As asked for; the version may be empty.
        sequence: The caller's id of the sequence; None for one that begins and ends with this request.
        start, end: Whether the sequence begins, and ends, with this request.
        arrived, deadline: When it came and when it is too late to run it, in seconds of the driver's clock.
        codec: What read its tensors, and will write its answer.
        inputs, count, lead, chosen: What the codec made of its tensors.
        outputs, error: Once it is answered, what the step gave, or why there is none.
        finish: Called with the step after it was answered.
    """

    caller: Caller
    id: str
    model_name: str
    version: str
    sequence: SequenceId | None
    start: bool
    end: bool
    arrived: float
    deadline: float
    codec: Codec = field(init=False)
    inputs: tuple[Buffer, ...] = ()
    count: int = 1
    lead: Lead = ()
    chosen: tuple[int, ...] = ()
    outputs: tuple[bytes, ...] = ()
    error: EngineError | None = None
    finish: Callable[[Step], None] | None = None

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the answer."""
        return self.caller.gone

    def answered(self, step: Step) -> None:
        """Called by the engine: the step is done."""
        if step.error is None:
            self.outputs = step.outputs
        else:
            self.error = self.explain(step.error)
        self.caller.reply(self)
        finish, self.finish = self.finish, None  # it refers to this
        if finish is not None:
            finish(step)

    def fail(self, error: EngineError) -> None:
        """Answer with an error."""
        self.error = self.explain(error)
        self.caller.reply(self)

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

    Raises:
        InvalidRequestError: A parameter has a value that is not allowed.
    """
    if len(request.id) > _LONGEST_ID:
        raise InvalidRequestError(f"id has at most {_LONGEST_ID} characters, not {len(request.id)}", field="id")
    sequence: SequenceId | None = None
    start = end = False
    deadline = float("inf")
    parameters = request.parameters
    if len(parameters) > _MAX_PARAMETERS:
        raise InvalidRequestError(
            f"a request has at most {_MAX_PARAMETERS} parameters, not {len(parameters)}", field="parameters"
        )
    for name, parameter in parameters.items():
        kinds = _KINDS.get(name)
        if kinds is None:
            continue  # other servers' models have parameters of their own; here they have none
        kind = parameter.WhichOneof("parameter_choice")
        if kind not in kinds:
            raise InvalidRequestError(
                f"parameter {name} must be {' or '.join(kinds)}, not {kind or 'unset'}", field=name
            )
        value = getattr(parameter, kind)
        if name == "sequence_id":
            sequence = _checked(value)
        elif name == "sequence_start":
            start = value
        elif name == "sequence_end":
            end = value
        elif name == "timeout" and value > 0:
            deadline = now + value / 1e6
        elif value < 0:
            raise InvalidRequestError(f"parameter {name} must not be negative", field=name)
    if sequence is None:
        if start or end:
            raise InvalidRequestError(
                "sequence_start and sequence_end need a sequence_id that is neither 0 nor empty", field="sequence_id"
            )
        start = end = True
    return Inference(caller, request.id, request.model_name, request.model_version, sequence, start, end, now, deadline)


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


def _checked(value: SequenceId) -> SequenceId | None:
    if isinstance(value, str) and len(value) > _LONGEST_SEQUENCE_ID:
        raise InvalidRequestError(
            f"a sequence_id has at most {_LONGEST_SEQUENCE_ID} characters, not {len(value)}", field="sequence_id"
        )
    return value or None
