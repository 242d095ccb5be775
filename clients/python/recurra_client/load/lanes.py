"""Lanes: what sends the same message again and again, and sees that each was answered."""

import base64
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from recurra.v1 import inference_pb2

from recurra_client.load.frames import StreamEndedError
from recurra_client.load.wire import WireConnection

_SERVICE: Final = "/recurra.v1.InferenceService/"
STREAM: Final = _SERVICE + "StreamSteps"
UNARY: Final = _SERVICE + "Step"
BATCH: Final = _SERVICE + "StepBatch"
_SESSION_ID_TAG: Final = 0x0A  # field 1 of StreamStepsResponse, length-delimited
_RESULT_TAG: Final = 0x12  # field 2 of it, and where a step has succeeded, the next

Judge = Callable[[bytes], Sequence[str] | None]
"""Looks at a reply: the reasons of what failed in it; None where it is no answer to a message."""


class Lane(Protocol):
    """One sender.

    Attributes:
        sessions: How many each message holds a step of.
        answered: Called for each message that was answered, in their order, with the reasons of what failed in it.
        failed: Called once, when no more answers can come.
    """

    sessions: int
    answered: Callable[[Sequence[str]], None]
    failed: Callable[[Exception], None]

    def send(self) -> None:
        """Send the next message."""
        ...


def _nobody(_: Exception) -> None:
    """Until somebody asks: the failure is told again at the next `send`."""


class StreamLane:
    """Messages on one bidirectional stream.

    Args:
        connection: Which it is one of the streams of.
        path: "/package.Service/Method".
        first: The first message.
        following: All others.
        judge: Looks at the replies.
    """

    answered: Callable[[Sequence[str]], None]

    def __init__(self, connection: WireConnection, path: str, first: bytes, following: bytes, judge: Judge) -> None:
        self.sessions = 1
        self.failed: Callable[[Exception], None] = _nobody
        self._error: Exception | None = None
        self._judge = judge
        self._stream = connection.open(path, self._received, self._ended)
        self._frames = self._stream.prepare(first)
        self._following = self._stream.prepare(following)

    def send(self) -> None:
        """Send the next message."""
        if self._error is not None:
            self.failed(self._error)
            return
        frames = self._frames
        self._frames = self._following
        self._stream.send(frames)

    def _received(self, message: bytes) -> None:
        reasons = self._judge(message)
        if reasons is not None:
            self.answered(reasons)

    def _ended(self, error: StreamEndedError | None) -> None:
        self._error = error or StreamEndedError("OK", "the server ended the stream")
        self.failed(self._error)


class UnaryLane:
    """A call for each message; one at a time, so that the answers keep their order."""

    answered: Callable[[Sequence[str]], None]
    failed: Callable[[Exception], None]

    def __init__(self, connection: WireConnection, path: str, message: bytes, judge: Judge, sessions: int = 1) -> None:
        self.sessions = sessions
        self._connection = connection
        self._path = path
        self._message = message
        self._judge = judge
        self._reply = b""
        self._waiting = 0

    def send(self) -> None:
        """Make the next call, once those before are answered."""
        self._waiting += 1
        if self._waiting == 1:
            self._call()

    def _call(self) -> None:
        try:
            stream = self._connection.open(self._path, self._received, self._ended)
        except StreamEndedError as error:
            self.failed(error)
        else:
            stream.send(stream.prepare(self._message, last=True))

    def _received(self, message: bytes) -> None:
        self._reply = message

    def _ended(self, error: StreamEndedError | None) -> None:
        if error is not None and "grpc-status" not in error.trailers:
            self.failed(error)
            return
        self._waiting -= 1
        if self._waiting:
            self._call()
        failures = [reason_of(error)] * self.sessions if error is not None else self._judge(self._reply)
        self.answered(failures or ())


def stream_judge(session_id: str) -> Judge:
    """Judges the replies of a StreamSteps stream of one session: by two bytes, where all is well."""
    result_at = len(session_id) + 2

    def judge(reply: bytes) -> Sequence[str] | None:
        if reply[0] == _SESSION_ID_TAG and reply[result_at] == _RESULT_TAG:
            return ()
        decoded = inference_pb2.StreamStepsResponse.FromString(reply)
        if decoded.HasField("moving"):
            return None
        return [decoded.error.reason] if decoded.HasField("error") else ()

    return judge


def always_well(reply: bytes) -> Sequence[str]:  # noqa: ARG001
    """Judges calls whose status says all."""
    return ()


def batch_judge(reply: bytes) -> Sequence[str]:
    """Judges the reply to a StepBatch: a reason for each row that failed."""
    return [row.error.reason for row in inference_pb2.StepBatchResponse.FromString(reply).errors]


def reason_of(error: StreamEndedError) -> str:
    """The reason of docs/errors.md that a failed call carries, or the name of its gRPC status code."""
    text = error.trailers.get("grpc-status-details-bin", "")
    status, info = status_pb2.Status(), error_details_pb2.ErrorInfo()
    try:
        status.ParseFromString(base64.b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, DecodeError):
        return error.code
    for detail in status.details:
        if detail.Unpack(info):
            return str(info.reason)
    return error.code
