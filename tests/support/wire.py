"""Raw stubs and tensors: what a caller without the client library has."""

import queue
from typing import Any, NamedTuple

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2_grpc
from numpy.typing import ArrayLike, NDArray
from recurra.openinference import open_inference_pb2_grpc
from recurra.v1 import (
    inference_pb2_grpc,
    models_pb2_grpc,
    sessions_pb2_grpc,
    tensor_pb2,
)
from recurra.v1.inference_pb2 import StreamStepsRequest, StreamStepsResponse


class Stubs:
    """The services of one server, blocking.

    Args:
        target: Where it is.
        credentials: For TLS.
        token: Is shown with each call, as it is: whatever it holds.
    """

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None = None, *, token: str = "") -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = (
            grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target, options)
        )
        self.channel = grpc.intercept_channel(channel, _Shows(token)) if token else channel
        self.models = models_pb2_grpc.ModelsServiceStub(self.channel)
        self.sessions = sessions_pb2_grpc.SessionsServiceStub(self.channel)
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.open_inference = open_inference_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _Shows(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Puts a token into the metadata."""

    def __init__(self, token: str) -> None:
        self._entry = ("authorization", f"Bearer {token}")

    def _intercept(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = [*(details.metadata or ()), self._entry]
        more = (details.credentials, details.wait_for_ready, details.compression)
        return continuation(_Details(details.method, details.timeout, metadata, *more), request)

    intercept_unary_unary = intercept_unary_stream = _intercept  # type: ignore[assignment]
    intercept_stream_unary = intercept_stream_stream = _intercept  # type: ignore[assignment]


class Stream:
    """A stream that a test talks to message by message, for `timeout` seconds at most."""

    def __init__(self, stubs: Stubs, metadata: tuple[tuple[str, str], ...] = (), timeout: float | None = None) -> None:
        self._requests: queue.SimpleQueue[StreamStepsRequest | None] = queue.SimpleQueue()
        messages = iter(self._requests.get, None)
        self.call = stubs.inference.StreamSteps(messages, metadata=metadata, timeout=timeout)

    def send(self, **fields: object) -> None:
        """Send a message."""
        self._requests.put(StreamStepsRequest(**fields))  # type: ignore[arg-type]

    def read(self) -> StreamStepsResponse:
        """Wait for the next answer."""
        response: StreamStepsResponse = next(self.call)
        return response

    def ask(self, **fields: object) -> StreamStepsResponse:
        """Send a message and wait for the next answer."""
        self.send(**fields)
        return self.read()

    def end(self) -> list[StreamStepsResponse]:
        """Send no more and read the rest."""
        self._requests.put(None)
        return list(self.call)


def tensor(values: ArrayLike, dtype: str = "float32", **fields: Any) -> tensor_pb2.Tensor:
    """A tensor with its dtype and shape."""
    array = np.asarray(values, dtype)
    number = tensor_pb2.DataType.Value(f"DATA_TYPE_{array.dtype.name.upper()}")
    return tensor_pb2.Tensor(**{"dtype": number, "shape": array.shape, "data": array.tobytes(), **fields})


def array_of(message: tensor_pb2.Tensor) -> NDArray[Any]:
    """The array that a tensor carries."""
    name = tensor_pb2.DataType.Name(message.dtype).removeprefix("DATA_TYPE_").lower()
    return np.frombuffer(message.data, name).reshape(tuple(message.shape))


def error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """The google.rpc.ErrorInfo of a failed call."""
    status = status_pb2.Status()
    metadata: Any = error.trailing_metadata()
    status.ParseFromString(dict(metadata)["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "recurra"
    return info
