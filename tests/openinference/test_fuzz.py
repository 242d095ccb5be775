"""Whatever a caller sends, it gets an answer or a clear error, and nobody else notices."""

import re
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from recurra.openinference import open_inference_pb2 as pb
from recurra_server.rpc.status import CODES

from benchmarks.processes import resident_bytes
from tests.support.attacks import Attack
from tests.support.fuzzing import CASES
from tests.support.openinference import InferStream, Service, error_of, request, service, values
from tests.support.server import ServerProcess

# INTERNAL would be a bug, whatever was sent.
_REASONS = {error.reason for error in CODES} - {"INTERNAL"}
_CODES = {code for error, code in CODES.items() if error.reason != "INTERNAL"}
_fuzz = settings(max_examples=CASES, suppress_health_check=[HealthCheck.function_scoped_fixture])

_int64 = st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1))
_names = st.one_of(st.sampled_from(["x", "y", "token", ""]), st.text(max_size=40))
_parameters = st.dictionaries(
    st.one_of(
        st.sampled_from(
            ["sequence_id", "sequence_start", "sequence_end", "timeout", "priority", "shared_memory_region",
             "triton_enable_empty_final_response", "classification"]
        ),
        st.text(max_size=20),
    ),
    st.one_of(
        st.booleans().map(lambda value: pb.InferParameter(bool_param=value)),
        _int64.map(lambda value: pb.InferParameter(int64_param=value)),
        st.text(max_size=200).map(lambda value: pb.InferParameter(string_param=value)),
        st.floats().map(lambda value: pb.InferParameter(double_param=value)),
        st.integers(0, 2**64 - 1).map(lambda value: pb.InferParameter(uint64_param=value)),
        st.just(pb.InferParameter()),
    ),
    max_size=5,
)  # fmt: skip
_contents = st.builds(
    pb.InferTensorContents,
    bool_contents=st.lists(st.booleans(), max_size=3),
    int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    int64_contents=st.lists(_int64, max_size=3),
    fp32_contents=st.lists(st.floats(width=32), max_size=3),
    bytes_contents=st.lists(st.binary(max_size=8), max_size=3),
)
_tensors = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=_names,
    datatype=st.one_of(st.sampled_from(["FP32", "INT64", "FP16", "BYTES", "", "fp32"]), st.text(max_size=10)),
    shape=st.lists(_int64, max_size=12),
    parameters=_parameters,
    contents=st.one_of(st.none(), _contents),
)
_requests = st.builds(
    pb.ModelInferRequest,
    model_name=st.one_of(st.sampled_from(["counter", "lstm", "letters", ""]), st.text(max_size=100)),
    model_version=st.one_of(st.just(""), st.text(max_size=10)),
    id=st.text(max_size=30),
    parameters=_parameters,
    inputs=st.lists(_tensors, max_size=3),
    outputs=st.lists(
        st.builds(pb.ModelInferRequest.InferRequestedOutputTensor, name=_names, parameters=_parameters), max_size=3
    ),
    raw_input_contents=st.lists(st.binary(max_size=64), max_size=3),
)


def exchange(message: Any, other: Any, field: str) -> None:
    """Give a message the field of another of its kind."""
    only = type(other)()
    only.CopyFrom(other)
    for name in other.DESCRIPTOR.fields_by_name:
        if name != field:
            only.ClearField(name)
    message.ClearField(field)
    message.MergeFrom(only)


@st.composite
def nearly_right(draw: st.DrawFn) -> pb.ModelInferRequest:
    """A good request with one thing in it exchanged."""
    message = request([[1.0]], sequence=draw(st.integers(1, 5)), start=draw(st.booleans()), end=draw(st.booleans()))
    other: pb.ModelInferRequest = draw(_requests)
    if draw(st.booleans()):
        exchange(message, other, draw(st.sampled_from(sorted(message.DESCRIPTOR.fields_by_name))))
    else:
        exchange(message.inputs[0], draw(_tensors), draw(st.sampled_from(["name", "datatype", "shape", "contents"])))
    return message


class Neighbour:
    """A sequence that somebody else steps all the while."""

    def __init__(self, infer: Service) -> None:
        self._stream = InferStream(infer)
        self._sum = self._stream.step(0, sequence="neighbour", start=True)

    def steps(self) -> None:
        """Step it: its sum must be right."""
        self._sum += 1
        assert self._stream.step(1, sequence="neighbour") == self._sum


@pytest.fixture(scope="module")
def infer(server: ServerProcess) -> Iterator[Service]:
    with grpc.insecure_channel(server.target) as channel:
        yield service(channel)


@pytest.fixture(scope="module")
def neighbour(infer: Service) -> Neighbour:
    return Neighbour(infer)


@pytest.fixture(scope="module", autouse=True)
def unharmed(server: ServerProcess) -> Iterator[None]:
    """Afterwards, the log must tell of no bug."""
    yield
    assert not re.search("Traceback|unexpected|batch_failed|batch_not_made", server.output), server.output


def check(answer: pb.ModelInferResponse) -> None:
    """A good answer: each output has the bytes that its shape says."""
    assert answer.outputs
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        assert len(raw) == 4 * int(np.prod(output.shape))


@pytest.mark.e2e
@_fuzz
@given(message=st.one_of(_requests, nearly_right()))
def test_any_request_of_a_stream(
    infer: Service, neighbour: Neighbour, message: pb.ModelInferRequest, attack: Attack
) -> None:
    stream = InferStream(infer)
    answer = stream.ask(message)
    assert answer.infer_response.id == message.id
    if answer.error_message:
        reason = answer.infer_response.parameters["reason"].string_param
        event(reason)
        assert reason in _REASONS
    else:
        event("answered")
        check(answer.infer_response)
    good = stream.ask(request([[5.0]], sequence="own", start=True))
    assert values(good.infer_response).item() == 5
    assert stream.end() == []
    neighbour.steps()
    attack(
        "gRPC port",
        "any message on a stream of the Open Inference Protocol",
        "answered, or refused with a reason; others go on",
    )


@pytest.mark.e2e
@_fuzz
@given(message=st.one_of(_requests, nearly_right()))
def test_any_call(infer: Service, neighbour: Neighbour, message: pb.ModelInferRequest, attack: Attack) -> None:
    error = error_of(lambda: check(infer.ModelInfer(message)))
    event("answered" if error is None else error.code().name)
    if error is not None:
        assert error.code() in _CODES, error
        assert error.details()
    neighbour.steps()
    attack(
        "gRPC port",
        "any message in a call of the Open Inference Protocol",
        "answered, or refused with a reason; others go on",
    )


@st.composite
def torn(draw: st.DrawFn) -> bytes:
    """A request whose bytes were changed: lengths lie, fields are cut, types are wrong."""
    data = bytearray(request([[1.0], [2.0]], sequence=3, start=True, id="torn").SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["cut", "flip", "insert"])):
            case "cut":
                del data[place : place + draw(st.integers(1, 8))]
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=8))
            case _ if place < len(data):
                data[place] ^= draw(st.integers(1, 255))
    return bytes(data)


@pytest.mark.e2e
@_fuzz
@given(data=st.one_of(torn(), st.binary(max_size=200)))
def test_any_bytes(server: ServerProcess, infer: Service, neighbour: Neighbour, data: bytes, attack: Attack) -> None:
    def ask() -> None:
        (answer,) = [pb.ModelStreamInferResponse.FromString(each) for each in stream(iter([data]))]
        if answer.error_message:
            assert answer.infer_response.parameters["reason"].string_param in _REASONS

    with grpc.insecure_channel(server.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stream: Any = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        error = error_of(ask)
    event("answered" if error is None else error.code().name)
    if error is not None:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    neighbour.steps()
    attack("gRPC port", "any bytes on a stream of the Open Inference Protocol", "INVALID_ARGUMENT; others go on")


@pytest.mark.e2e
def test_huge_counts_are_refused_and_leave_nothing_behind(
    server: ServerProcess, infer: Service, neighbour: Neighbour, attack: Attack
) -> None:
    many_tensors = request()
    many_tensors.inputs.extend([many_tensors.inputs[0]] * 50_000)
    many_outputs = request(outputs=("y",))
    many_outputs.outputs.extend([many_outputs.outputs[0]] * 50_000)
    many_raw = request()
    many_raw.raw_input_contents.extend([b""] * 50_000)
    many_parameters = request(parameters={str(n): pb.InferParameter(int64_param=n) for n in range(20_000)})
    many_axes = request()
    many_axes.inputs[0].shape.extend([1] * 500_000)
    many_elements = request(np.ones((500_000, 1)), typed=True)
    stream, sizes = InferStream(infer), []
    for _ in range(12):
        for message in (many_tensors, many_outputs, many_raw, many_parameters, many_axes, many_elements):
            answer = stream.ask(message)
            assert answer.infer_response.parameters["reason"].string_param in _REASONS
            assert len(answer.error_message) < 1000
            error = error_of(lambda message=message: infer.ModelInfer(message))  # type: ignore[misc]
            assert error is not None
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        neighbour.steps()
        sizes.append(resident_bytes([server.pid]))
    assert max(sizes[2:]) < sizes[1] + (32 << 20), sizes
    attack("gRPC port", "tensors, outputs, parameters and axes by the ten thousands", "INVALID_ARGUMENT; memory stays")
