"""How servers are spoken to: a step of a session as a message, and the answer in the reply."""

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from recurra.v1 import inference_pb2, sessions_pb2, tensor_pb2
from recurra_client.load import lanes

Array = NDArray[np.float32]
Transport = Literal["stream", "unary", "http"]


class Dialect(Protocol):
    """One server's way.

    Attributes:
        transport: A gRPC stream for each session, a gRPC call a step, or HTTP/1.1.
        path: "/package.Service/Method", or that of the URL.
    """

    transport: Transport
    path: str

    def encode(self, session: int, x: Array, *, first: bool) -> bytes:
        """The message with a step x [16] of a session."""
        ...

    def good(self, session: int) -> bytes:
        """What every reply begins with that is no error."""
        ...

    def decode(self, reply: bytes) -> Array:
        """The output [1] in a reply."""
        ...


class Recurra:
    """StreamSteps, one session a stream; the first message opens the session."""

    transport: Transport = "stream"
    path = lanes.STREAM

    def __init__(self, model: str = "lstm-128", outputs: Sequence[str] = ()) -> None:
        self._model = model
        self._outputs = outputs

    def encode(self, session: int, x: Array, *, first: bool) -> bytes:
        """The message with a step x [16] or a chunk x [T, 16] of a session."""
        inputs = [tensor_pb2.Tensor(shape=x.shape, data=x.tobytes())]
        request = inference_pb2.StreamStepsRequest(inputs=inputs, outputs=self._outputs)
        if first:
            request.open.CopyFrom(sessions_pb2.OpenSessionRequest(model=self._model, session_id=_name(session)))
        return request.SerializeToString()

    def good(self, session: int) -> bytes:
        """The session's id, and the tag of a result."""
        name = _name(session).encode()
        return b"\x0a" + bytes([len(name)]) + name + b"\x12"

    def decode(self, reply: bytes) -> Array:
        """The output [1], or [T, 1]."""
        tensor = inference_pb2.StreamStepsResponse.FromString(reply).result.outputs[0]
        return np.frombuffer(tensor.data, np.float32).reshape(tuple(tensor.shape))


def _name(session: int) -> str:
    return f"session-{session}"
