"""The Open Inference Protocol, over the wire, with stubs of our own proto."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from recurra.openinference import open_inference_pb2 as pb
from recurra.v1 import inference_pb2, sessions_pb2

from tests.support.openinference import InferStream, Service, error_of, request, service, values
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stubs, error_info, tensor

Code = grpc.StatusCode
_numbers = itertools.count(1)


@pytest.fixture
def infer(stubs: Stubs) -> Service:
    return service(stubs.channel)


@pytest.fixture
def sequence() -> int:
    """The id of a sequence that no other test uses."""
    return next(_numbers)


def refusal(infer: Service, message: pb.ModelInferRequest) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        infer.ModelInfer(message)
    return caught.value


# --- sequences -----------------------------------------------------------------------------


def test_a_sequence_goes_on_from_call_to_call_and_ends(infer: Service, sequence: int) -> None:
    sums = [
        values(infer.ModelInfer(request([[x]], sequence=sequence, start=x == 1, end=x == 3))).item() for x in (1, 2, 3)
    ]
    assert sums == [1, 3, 6]
    error = refusal(infer, request(sequence=sequence))
    assert (error.code(), error_info(error).reason) == (Code.NOT_FOUND, "SESSION_NOT_FOUND")


def test_a_missing_start_names_the_sequence_and_says_so(infer: Service) -> None:
    for sequence, shown in ((123456, "123456"), ("call-9 é", "'call-9 é'")):
        error = refusal(infer, request(sequence=sequence))
        assert f"sequence {shown} of model 'counter'" in str(error.details())
        assert "sequence_start" in str(error.details())
        assert error_info(error).metadata["sequence_id"] == str(sequence)


def test_the_id_is_echoed_and_the_answer_is_raw(infer: Service, sequence: int) -> None:
    answer = infer.ModelInfer(request([[2.0]], sequence=sequence, start=True, id="request 17"))
    assert (answer.id, answer.model_name, answer.model_version) == ("request 17", "counter", "1")
    assert [(o.name, o.datatype, list(o.shape), o.HasField("contents")) for o in answer.outputs] == [
        ("y", "FP32", [1, 1], False)
    ]
    assert list(answer.raw_output_contents) == [np.float32(2).tobytes()]


def test_start_and_end_in_one_request_is_a_sequence_of_its_own(infer: Service, sequence: int) -> None:
    for value in (4.0, 5.0):
        answer = infer.ModelInfer(request([[value]], sequence=sequence, start=True, end=True))
        assert values(answer).item() == value
    assert refusal(infer, request(sequence=sequence)).code() == Code.NOT_FOUND


def test_start_on_a_live_id_begins_anew(infer: Service, sequence: int) -> None:
    infer.ModelInfer(request([[10.0]], sequence=sequence, start=True))
    assert values(infer.ModelInfer(request([[1.0]], sequence=sequence, start=True))).item() == 1
    assert values(infer.ModelInfer(request([[1.0]], sequence=sequence))).item() == 2


def test_numbers_texts_and_models_keep_their_sequences_apart(infer: Service) -> None:
    ids: list[int | str] = [77, "77", ":77", "77 ", "ключ", "a" * 128]
    for number, sequence in enumerate(ids):
        infer.ModelInfer(request([[float(number)]], sequence=sequence, start=True))
    infer.ModelInfer(request([[0.5]], sequence=77, start=True, model="echo"))
    for number, sequence in enumerate(ids):
        assert values(infer.ModelInfer(request([[100.0]], sequence=sequence))).item() == 100 + number


def test_a_sequence_belongs_to_its_id_and_not_to_a_stream(infer: Service, sequence: int) -> None:
    first, second = InferStream(infer), InferStream(infer)
    assert first.step(1, sequence=sequence, start=True) == 1
    assert second.step(2, sequence=sequence) == 3
    assert first.step(4, sequence=sequence) == 7
    first.end()
    assert second.step(8, sequence=sequence) == 15
    second.end()
    assert values(infer.ModelInfer(request([[16.0]], sequence=sequence, end=True))).item() == 31


def test_one_stream_carries_many_sequences_pipelined(infer: Service) -> None:
    stream, ids = InferStream(infer), [f"many-{n}" for n in range(20)]
    for step in range(10):
        for n, sequence in enumerate(ids):
            stream.send(
                request([[float(n)]], sequence=sequence, start=step == 0, end=step == 9, id=f"{sequence}/{step}")
            )
    answers = [response.infer_response for response in stream.end()]
    for n, sequence in enumerate(ids):
        mine = [answer for answer in answers if answer.id.startswith(f"{sequence}/")]
        assert [answer.id for answer in mine] == [f"{sequence}/{step}" for step in range(10)]
        assert [values(answer).item() for answer in mine] == [n * (step + 1) for step in range(10)]


def test_sequences_with_one_id_may_be_sent_without_waiting(infer: Service, sequence: int) -> None:
    """A START waits until the steps sent before it are done; what is sent after it waits with it."""
    stream = InferStream(infer)
    chunk = [[1.0]] * 500  # long enough that the server has not done with it when the next ones come
    for round_ in range(3):
        stream.send(request(chunk, sequence=sequence, start=True, id=f"{round_}a"))
        stream.send(request([[1.0]], sequence=sequence, end=round_ == 1, id=f"{round_}b"))
        stream.send(request(chunk, sequence=sequence, start=True, id=f"{round_}c"))
        stream.send(request([[2.0]], sequence=sequence, id=f"{round_}d"))
    answers = stream.end()
    assert [(a.infer_response.id, a.error_message) for a in answers] == [
        (f"{round_}{letter}", "") for round_ in range(3) for letter in "abcd"
    ]
    last = [values(answer.infer_response)[-1].item() for answer in answers]
    assert last == [500, 501, 500, 502] * 3


def test_what_follows_an_end_without_a_start_is_refused(infer: Service, sequence: int) -> None:
    stream = InferStream(infer)
    stream.send(request([[1.0]] * 500, sequence=sequence, start=True, id="first"))
    stream.send(request(sequence=sequence, end=True, id="last"))
    stream.send(request(sequence=sequence, id="orphan"))
    stream.send(request([[7.0]], sequence=sequence, start=True, id="anew"))
    stream.send(request([[1.0]], sequence=sequence, id="next"))
    answers = {answer.infer_response.id: answer for answer in stream.end()}
    assert values(answers["last"].infer_response).item() == 501
    assert "SESSION_NOT_FOUND" in answers["orphan"].error_message
    assert values(answers["anew"].infer_response).item() == 7
    assert values(answers["next"].infer_response).item() == 8


def test_a_sequence_whose_first_step_fails_has_not_begun(infer: Service, sequence: int) -> None:
    stream = InferStream(infer)
    assert "INPUT_NOT_FINITE" in stream.ask(request([[np.nan]], sequence=sequence, start=True)).error_message
    assert "SESSION_NOT_FOUND" in stream.ask(request([[1.0]], sequence=sequence)).error_message
    assert stream.step(3, sequence=sequence, start=True) == 3


def test_a_sequence_whose_last_step_fails_has_not_ended(infer: Service, sequence: int) -> None:
    stream = InferStream(infer)
    assert stream.step(3, sequence=sequence, start=True) == 3
    assert "INPUT_NOT_FINITE" in stream.ask(request([[np.inf]], sequence=sequence, end=True)).error_message
    assert stream.step(4, sequence=sequence, end=True) == 7


def test_errors_of_a_stream_come_in_band_and_it_goes_on(infer: Service, sequence: int) -> None:
    stream = InferStream(infer)
    assert stream.step(1, sequence=sequence, start=True) == 1
    failed = stream.ask(request([[1.0, 2.0]], sequence=sequence, id="the one"))
    assert failed.infer_response.id == "the one"
    assert failed.error_message.startswith("[request id: the one] INPUT_SHAPE: ")
    assert failed.infer_response.parameters["reason"].string_param == "INPUT_SHAPE"
    assert stream.ask(request(model="nothing", sequence=5, start=True)).error_message.startswith("MODEL_NOT_FOUND: ")
    assert stream.ask(request(model="nothing", sequence=5)).error_message.startswith("MODEL_NOT_FOUND: ")
    assert stream.step(1, sequence=sequence) == 2
    assert stream.end() == []


def test_every_answer_of_a_stream_says_that_it_is_the_final_one(infer: Service, sequence: int) -> None:
    stream = InferStream(infer)
    wanted = {"triton_enable_empty_final_response": pb.InferParameter(bool_param=True)}
    for parameters in (wanted, {}):
        for message in (request(sequence=sequence, start=True, parameters=parameters), request(sequence="none")):
            assert stream.ask(message).infer_response.parameters["triton_final_response"].bool_param
    assert stream.end() == []


def test_without_a_sequence_id_a_request_is_a_sequence_by_itself(infer: Service, stubs: Stubs) -> None:
    before = stubs.sessions.ListSessions(sessions_pb2.ListSessionsRequest(model="counter")).total
    whole = [[1.0], [2.0], [3.0]]
    for sequence in (None, 0, ""):
        assert values(infer.ModelInfer(request(whole, sequence=sequence))).tolist() == [[1], [3], [6]]
    stream = InferStream(infer)
    assert values(stream.ask(request(whole)).infer_response).tolist() == [[1], [3], [6]]
    assert "INPUT_NOT_FINITE" in stream.ask(request([[np.nan]])).error_message
    stream.end()
    assert stubs.sessions.ListSessions(sessions_pb2.ListSessionsRequest(model="counter")).total == before
    error = refusal(infer, request(start=True))
    assert error_info(error).metadata["field"] == "sequence_id"


@pytest.mark.parametrize("streamed", [False, True])
def test_who_goes_away_gives_back_what_only_he_knew(repository: Path, streamed: bool) -> None:
    """A request without a sequence_id lives in a session that ends with its call, answered or not."""
    long = request(np.ones((400_000, 4)), model="lstm")
    bounds = ("--max-sessions", "1", "--max-chunk-steps", "500000")
    with running_server(repository, *bounds) as server, grpc.insecure_channel(server.target) as channel:
        infer = service(channel)
        stream = InferStream(infer)
        if streamed:
            stream.send(long)
        call: Any = stream.call if streamed else infer.ModelInfer.future(long)
        asked = pb.ModelStatisticsRequest(name="lstm", version="10")
        while not infer.ModelStatistics(asked).model_stats[0].execution_count:
            pass
        assert refusal(infer, request()).code() == Code.RESOURCE_EXHAUSTED
        call.cancel()
        for _ in range(1000):  # until the server has seen that he is gone
            error = error_of(lambda: infer.ModelInfer(request()))
            if error is None:
                break
        assert error is None
        assert infer.ModelStatistics(asked).model_stats[0].inference_count == 0


def test_a_sequence_is_a_session_like_any_other(infer: Service, stubs: Stubs, sequence: int) -> None:
    infer.ModelInfer(request([[5.0]], sequence=sequence, start=True))
    step = inference_pb2.StepRequest(session_id=f"counter:{sequence}", inputs=[tensor([1])])
    assert np.frombuffer(stubs.inference.Step(step).result.outputs[0].data, np.float32).item() == 6
    stubs.sessions.CloseSession(sessions_pb2.CloseSessionRequest(session_id=f"counter:{sequence}"))
    assert "sequence_start" in str(refusal(infer, request(sequence=sequence)).details())


def test_a_sequence_stays_on_the_version_where_it_began(infer: Service, sequence: int) -> None:
    x = np.ones((1, 4))
    ninth = infer.ModelInfer(request(x, model="lstm", model_version="9", sequence=sequence, start=True))
    assert ninth.model_version == "9"
    assert infer.ModelInfer(request(x, model="lstm", sequence=sequence)).model_version == "9"
    error = refusal(infer, request(x, model="lstm", model_version="10", sequence=sequence))
    assert "runs on version 9" in str(error.details())
    assert infer.ModelInfer(request(x, model="lstm", sequence=sequence, start=True)).model_version == "10"


def test_a_step_whose_timeout_passes_before_it_is_run_is_not_run(infer: Service, sequence: int) -> None:
    stream = InferStream(infer)
    assert stream.step(1, sequence=sequence, start=True) == 1
    for number in range(20):
        stream.send(request([[1.0]] * 500, sequence=sequence, id=f"long {number}"))
    late = {"timeout": pb.InferParameter(int64_param=1), "priority": pb.InferParameter(uint64_param=3)}
    stream.send(request([[1000.0]], sequence=sequence, parameters=late, id="late"))
    answers = {answer.infer_response.id: answer for answer in stream.end()}
    assert answers["late"].infer_response.parameters["reason"].string_param == "DEADLINE"
    assert values(infer.ModelInfer(request([[0.0]], sequence=sequence))).item() == 10_001


# --- tensors -------------------------------------------------------------------------------


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


# --- descriptions --------------------------------------------------------------------------


def test_health_and_readiness(infer: Service, stubs: Stubs) -> None:
    assert infer.ServerLive(pb.ServerLiveRequest()).live
    assert infer.ServerReady(pb.ServerReadyRequest()).ready
    ready = [
        infer.ModelReady(pb.ModelReadyRequest(name=name, version=version)).ready
        for name, version in (("lstm", ""), ("lstm", "9"), ("lstm", "11"), ("nothing", ""))
    ]
    assert ready == [True, True, False, False]
    name = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
    assert health_pb2_grpc.HealthStub(stubs.channel).Check(name).status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_describes_it(stubs: Stubs) -> None:
    reflection = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
    wanted = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.ModelInferRequest"),
    ]
    listed, described = reflection.ServerReflectionInfo(iter(wanted))
    names = {service.name for service in listed.list_services_response.service}
    assert {"inference.GRPCInferenceService", "recurra.v1.InferenceService"} <= names
    file = descriptor_pb2.FileDescriptorProto.FromString(described.file_descriptor_response.file_descriptor_proto[0])
    assert (file.package, file.service[0].name) == ("inference", "GRPCInferenceService")


def test_a_server_that_shuts_down_begins_no_sequences_and_ends_the_stream(repository: Path) -> None:
    with running_server(repository, "--drain-seconds", "2") as server, grpc.insecure_channel(server.target) as channel:
        infer = service(channel)
        stream = InferStream(infer)
        assert stream.step(1, sequence=1, start=True) == 1
        server.terminate()
        while infer.ServerReady(pb.ServerReadyRequest()).ready:
            pass
        assert not infer.ModelReady(pb.ModelReadyRequest(name="counter")).ready
        assert stream.step(1, sequence=1) == 2
        refused = stream.ask(request(sequence=2, start=True))
        assert refused.infer_response.parameters["reason"].string_param == "DRAINING"
        with pytest.raises(grpc.RpcError) as caught:
            stream.read()
        assert (caught.value.code(), error_info(caught.value).reason) == (Code.UNAVAILABLE, "DRAINING")
        assert server.wait() == 0


def test_descriptions_say_what_a_model_takes(infer: Service) -> None:
    server = infer.ServerMetadata(pb.ServerMetadataRequest())
    assert (server.name, "sequence" in server.extensions) == ("recurra", True)
    model = infer.ModelMetadata(pb.ModelMetadataRequest(name="lstm"))
    assert (model.name, list(model.versions), model.platform) == ("lstm", ["10", "9"], "onnxruntime_onnx")
    assert [(t.name, t.datatype, list(t.shape)) for t in (*model.inputs, *model.outputs)] == [
        ("x", "FP32", [-1, 4]),
        ("y", "FP32", [-1, 2]),
    ]
    config = infer.ModelConfig(pb.ModelConfigRequest(name="lstm")).config
    assert config.WhichOneof("scheduling_choice") == "sequence_batching"
    assert [(s.input_name, list(s.dims)) for s in config.sequence_batching.state] == [
        ("h_in", [1, 8]),
        ("c_in", [1, 8]),
    ]
    assert config.parameters["digest"].string_value.startswith("sha256:")
    assert infer.ModelConfig(pb.ModelConfigRequest(name="echo")).config.WhichOneof("scheduling_choice") is None
    with pytest.raises(grpc.RpcError) as caught:
        infer.ModelConfig(pb.ModelConfigRequest(name="nothing"))
    assert error_info(caught.value).reason == "MODEL_NOT_FOUND"


def test_statistics_are_those_that_prometheus_is_told(infer: Service, server: ServerProcess, sequence: int) -> None:
    for step in range(3):
        infer.ModelInfer(request([[1.0]] * 4, sequence=sequence, start=step == 0))
    refusal(infer, request([[np.nan]], sequence=sequence))
    (stats,) = infer.ModelStatistics(pb.ModelStatisticsRequest(name="counter")).model_stats
    samples, labels = server.metrics(), {"model": "counter", "version": "1"}
    assert stats.inference_count == samples.get("recurra_timesteps_total", **labels)
    assert stats.execution_count == samples.get("recurra_batch_size_count", **labels)
    assert stats.inference_stats.success.count == samples.get("recurra_step_seconds_count", **labels)
    assert stats.inference_stats.success.ns >= stats.inference_stats.compute_infer.ns > 0
    assert stats.inference_stats.fail.count >= 1
    assert stats.last_inference > 1_600_000_000_000
    everything = infer.ModelStatistics(pb.ModelStatisticsRequest()).model_stats
    assert [(s.name, s.version) for s in everything if s.name == "lstm"] == [("lstm", "10"), ("lstm", "9")]


def test_the_repository_is_listed_and_changes_while_running(infer: Service) -> None:
    def ready() -> list[str]:
        listed = infer.RepositoryIndex(pb.RepositoryIndexRequest()).models
        return [model.version for model in listed if (model.name, model.state) == ("echo", "READY")]

    assert ready() == ["1"]
    infer.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="echo"))
    assert ready() == []
    assert not infer.ModelReady(pb.ModelReadyRequest(name="echo")).ready
    infer.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="echo"))
    assert ready() == ["1"]
    calls: tuple[tuple[Callable[[], object], Code, str], ...] = (
        (
            lambda: infer.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="nothing")),
            Code.NOT_FOUND,
            "MODEL_NOT_FOUND",
        ),
        (
            lambda: infer.RepositoryModelLoad(
                pb.RepositoryModelLoadRequest(
                    model_name="echo", parameters={"config": pb.ModelRepositoryParameter(string_param="{}")}
                )
            ),
            Code.UNIMPLEMENTED,
            "UNSUPPORTED",
        ),
    )
    for call, code, reason in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert (caught.value.code(), error_info(caught.value).reason) == (code, reason)
