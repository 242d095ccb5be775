"""The Open Inference Protocol with raw stubs: requests, and a stream that a test talks to message by message."""

import queue
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from recurra.openinference import open_inference_pb2 as pb
from recurra.openinference import open_inference_pb2_grpc

_TYPES = {"float32": "FP32", "float64": "FP64", "float16": "FP16", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}
Service = open_inference_pb2_grpc.GRPCInferenceServiceStub


def service(channel: grpc.Channel) -> Service:
    """The service, blocking."""
    return Service(channel)


def request(
    values: ArrayLike = ((1.0,),),
    *,
    model: str = "counter",
    sequence: int | str | None = None,
    start: bool = False,
    end: bool = False,
    typed: bool = False,
    name: str = "x",
    dtype: str = "float32",
    outputs: tuple[str, ...] = (),
    parameters: dict[str, pb.InferParameter] | None = None,
    **fields: Any,
) -> pb.ModelInferRequest:
    """A step with one input, as the clients send it."""
    array = np.asarray(values, dtype)
    message = pb.ModelInferRequest(model_name=model, **fields)
    if isinstance(sequence, str):
        message.parameters["sequence_id"].string_param = sequence
    elif sequence is not None:
        message.parameters["sequence_id"].int64_param = sequence
    for flag, value in (("sequence_start", start), ("sequence_end", end)):
        if value:
            message.parameters[flag].bool_param = True
    for key, parameter in (parameters or {}).items():
        message.parameters[key].CopyFrom(parameter)
    tensor = message.inputs.add(name=name, datatype=_TYPES[dtype], shape=array.shape)
    if typed:
        place = {"float32": "fp32_contents", "float64": "fp64_contents", "int64": "int64_contents"}[dtype]
        getattr(tensor.contents, place).extend(array.ravel().tolist())
    else:
        message.raw_input_contents.append(array.tobytes())
    for output in outputs:
        message.outputs.add(name=output)
    return message


def refusal(infer: Service, message: pb.ModelInferRequest) -> grpc.RpcError:
    """The error of a request that must be refused."""
    with pytest.raises(grpc.RpcError) as caught:
        infer.ModelInfer(message)
    return caught.value


def values(response: pb.ModelInferResponse) -> NDArray[np.float32]:
    """The first output."""
    assert response.outputs[0].datatype == "FP32"
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(tuple(response.outputs[0].shape))


def error_of(call: Callable[[], object]) -> grpc.RpcError | None:
    """The error that a call ends with, or None."""
    try:
        call()
    except grpc.RpcError as error:
        return error
    return None


class InferStream:
    """A ModelStreamInfer call."""

    def __init__(self, stub: Service) -> None:
        self._requests: queue.SimpleQueue[pb.ModelInferRequest | None] = queue.SimpleQueue()
        self.call = stub.ModelStreamInfer(iter(self._requests.get, None))

    def send(self, message: pb.ModelInferRequest) -> None:
        """Send a request."""
        self._requests.put(message)

    def read(self) -> pb.ModelStreamInferResponse:
        """Wait for the next answer."""
        response: pb.ModelStreamInferResponse = next(self.call)
        return response

    def ask(self, message: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
        """Send a request and wait for the next answer."""
        self.send(message)
        return self.read()

    def step(self, value: float, **options: Any) -> float:
        """Step a running sum and return it.

        Raises:
            AssertionError: The step failed.
        """
        response = self.ask(request([[value]], **options))
        assert not response.error_message, response
        return float(values(response.infer_response)[0, 0])

    def end(self) -> list[pb.ModelStreamInferResponse]:
        """Send no more and read the rest."""
        self._requests.put(None)
        return list(self.call)
