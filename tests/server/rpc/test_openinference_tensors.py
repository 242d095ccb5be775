"""Tensors and parameters of the Open Inference Protocol, over the wire."""

from typing import Any

import grpc
import numpy as np
import pytest
from recurra.openinference import open_inference_pb2 as pb

from tests.support.openinference import InferStream, Service, refusal, request, values
from tests.support.wire import Stubs, error_info

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("x", "shape"), [([2.0], [1]), ([[2.0]], [1, 1]), ([[2.0], [3.0]], [2, 1]), ([[[2.0], [3.0]]], [1, 2, 1])]
)
@pytest.mark.parametrize("typed", [False, True])
def test_steps_and_chunks_are_answered_in_the_shape_they_came_in(
    infer: Service, sequence: int, x: Any, shape: list[int], typed: bool
) -> None:
    answer = infer.ModelInfer(request(x, sequence=sequence, start=True, typed=typed))
    assert list(answer.outputs[0].shape) == shape
    np.testing.assert_array_equal(values(answer).ravel(), np.cumsum(x))


def test_scalars_of_whole_numbers(infer: Service, sequence: int) -> None:
    for typed in (False, True):
        token: dict[str, Any] = {"model": "letters", "name": "token", "dtype": "int64", "typed": typed}
        answer = infer.ModelInfer(request([1, 2], sequence=sequence, start=True, **token))
        assert list(answer.outputs[0].shape) == [2, 5]
    error = refusal(infer, request([99], sequence=sequence, **token))
    assert error_info(error).reason == "INPUT_REFUSED"


def without_raw(message: pb.ModelInferRequest) -> pb.ModelInferRequest:
    del message.raw_input_contents[:]
    return message


def with_raw(message: pb.ModelInferRequest, *raw: bytes) -> pb.ModelInferRequest:
    message.raw_input_contents.extend(raw)
    return message


def reshaped(*shape: int) -> pb.ModelInferRequest:
    message = request()
    message.inputs[0].shape[:] = shape
    return message


def shared_memory() -> pb.ModelInferRequest:
    message = without_raw(request())
    message.inputs[0].parameters["shared_memory_region"].string_param = "region"
    return message


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (request(dtype="float64"), "INPUT_DTYPE"),
        (request(name="z"), "INPUT_NAME"),
        (pb.ModelInferRequest(model_name="counter"), "INPUT_NAME"),
        (request([[1.0, 2.0]]), "INPUT_SHAPE"),
        (request(np.ones((2, 3, 1))), "INPUT_SHAPE"),
        (reshaped(2, 1), "INPUT_SHAPE"),
        (reshaped(-1, 1), "CHUNK_LENGTH"),
        (reshaped(0, 1), "CHUNK_LENGTH"),
        (reshaped(2**62, 1), "CHUNK_LENGTH"),
        (reshaped(1, 2**62, 1), "CHUNK_LENGTH"),
        (reshaped(*[1] * 1000), "INPUT_SHAPE"),
        (reshaped(), "INPUT_SHAPE"),
        (request(np.ones((501, 1))), "CHUNK_LENGTH"),
        (without_raw(request()), "INPUT_SHAPE"),
        (with_raw(request(), b"1234"), "INVALID_REQUEST"),
        (with_raw(request(typed=True), b"1234"), "INVALID_REQUEST"),
        (request([[np.nan]]), "INPUT_NOT_FINITE"),
        (request(outputs=("z",)), "INVALID_REQUEST"),
        (request(outputs=("y", "y")), "INVALID_REQUEST"),
        (shared_memory(), "INVALID_REQUEST"),
        (request(model="nothing"), "MODEL_NOT_FOUND"),
        (request(model_version="8"), "MODEL_NOT_FOUND"),
        (request(id="x" * 2000), "INVALID_REQUEST"),
        (request(sequence="x" * 200), "INVALID_REQUEST"),
        (request(sequence=1, parameters={"sequence_start": pb.InferParameter(string_param="yes")}), "INVALID_REQUEST"),
        (request(parameters={"timeout": pb.InferParameter(double_param=1.0)}), "INVALID_REQUEST"),
        (request(parameters={"priority": pb.InferParameter(int64_param=-1)}), "INVALID_REQUEST"),
        (request(parameters={f"p{n}": pb.InferParameter() for n in range(100)}), "INVALID_REQUEST"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(infer: Service, message: pb.ModelInferRequest, reason: str) -> None:
    error = refusal(infer, message)
    assert error_info(error).reason == reason
    answer = InferStream(infer).ask(message)
    assert answer.infer_response.parameters["reason"].string_param == reason


def test_outputs_can_be_chosen_and_unknown_parameters_are_passed_over(infer: Service) -> None:
    other = {"temperature": pb.InferParameter(double_param=0.5)}
    assert values(infer.ModelInfer(request([[2.0]], outputs=("y",), parameters=other))).item() == 2


def test_a_message_that_is_none_ends_the_stream_with_a_reason(infer: Service, stubs: Stubs) -> None:
    call: Any = stubs.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    with pytest.raises(grpc.RpcError) as caught:
        list(call(iter([b"\xff\xff\xff"])))
    assert error_info(caught.value).reason == "INVALID_REQUEST"
