"""How the peers are spoken to."""

import struct

import numpy as np

from benchmarks.dialects import Array, Transport
from benchmarks.peers.protobuf import field, fields


class OpenInference:
    """The Open Inference Protocol (https://github.com/kserve/open-inference-protocol), tensors as raw bytes.

    Args:
        transport: A ModelStreamInfer stream for each session, or a ModelInfer call a step.
        wrapped: Whether a stream's reply stands in a ModelStreamInferResponse, as Triton has it.
        correlated: Whether requests say which sequence they belong to, as Triton's sequence batcher needs it.
        model: Its name there.
    """

    def __init__(
        self, transport: Transport, *, wrapped: bool = False, correlated: bool = True, model: str = "lstm"
    ) -> None:
        self.transport: Transport = transport
        method = "ModelStreamInfer" if transport == "stream" else "ModelInfer"
        self.path = f"/inference.GRPCInferenceService/{method}"
        self._wrapped = wrapped
        self._correlated = correlated
        self._model = model

    def encode(self, session: int, x: Array, *, first: bool) -> bytes:
        """A ModelInferRequest."""
        parameters = {"sequence_id": field(2, session + 1)} if self._correlated else {}
        if first and self._correlated:
            parameters["sequence_start"] = field(1, 1)
        shape = field(3, b"".join(field(0, size)[1:] for size in (1, x.size)))
        return (
            field(1, self._model)
            + b"".join(field(4, field(1, name) + field(2, value)) for name, value in parameters.items())
            + field(5, field(1, "x") + field(2, "FP32") + shape)
            + field(7, x.tobytes())
        )

    def good(self, session: int) -> bytes:
        """Triton's errors stand in field 1; elsewhere the status says all."""
        return b"\x12" if self._wrapped else b""

    def decode(self, reply: bytes) -> Array:
        """The output, which some send raw and some in `contents`."""
        if self._wrapped:
            outer = fields(reply)
            if 2 not in outer:
                raise ConnectionError(outer[1][0].decode())
            reply = outer[2][0]
        response = fields(reply)
        if 6 in response:
            return np.frombuffer(response[6][0], np.float32)
        return np.frombuffer(fields(fields(response[5][0])[5][0])[6][0], np.float32)


class TorchServe:
    """StreamPredictions2, one sequence a stream."""

    transport: Transport = "stream"
    path = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/StreamPredictions2"

    def encode(self, session: int, x: Array, *, first: bool) -> bytes:
        """A PredictionsRequest."""
        inputs = {"data": x.tobytes(), **({"ts_request_sequence_start": b"true"} if first else {})}
        return (
            field(1, "lstm")
            + b"".join(field(3, field(1, name) + field(2, value)) for name, value in inputs.items())
            + field(4, str(session))
        )

    def good(self, session: int) -> bytes:
        """A prediction."""
        return b"\x0a\x04"

    def decode(self, reply: bytes) -> Array:
        """The prediction; what fails has a status instead."""
        response = fields(reply)
        if len(response[1][0]) != 4:
            raise ConnectionError(response[1][0].decode(errors="replace")[:200])
        return np.frombuffer(response[1][0], np.float32)


class Mosec:
    """HTTP/1.1: the session's number and x as raw bytes, y as raw bytes."""

    transport: Transport = "http"
    path = "/inference"

    def encode(self, session: int, x: Array, *, first: bool) -> bytes:
        """The body of a request."""
        return struct.pack("<q", session) + x.tobytes()

    def good(self, session: int) -> bytes:
        """The status says all."""
        return b""

    def decode(self, reply: bytes) -> Array:
        """The body of the response."""
        return np.frombuffer(reply, np.float32)
