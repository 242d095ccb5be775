"""What a reply says of the steps that it answers."""

import base64
from collections.abc import Callable, Sequence
from typing import Final

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from recurra.v1 import inference_pb2

from recurra_client.load.frames import StreamEndedError

_SESSION_ID_TAG: Final = 0x0A  # field 1 of StreamStepsResponse, length-delimited
_RESULT_TAG: Final = 0x12  # field 2 of it, and where a step has succeeded, the next

Judge = Callable[[bytes], Sequence[str] | None]
"""Looks at a reply: the reasons of what failed in it; None where it is no answer to a message."""


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
