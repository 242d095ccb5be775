"""What the Open Inference Protocol tells of the server and its models, over the wire."""

from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from recurra.openinference import open_inference_pb2 as pb

from tests.support.openinference import InferStream, Service, refusal, request, service
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stubs, error_info

Code = grpc.StatusCode


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
