"""Health, reflection, metrics, settings and refusals at the start: what operators rely on."""

import resource
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pool
from grpc_channelz.v1 import channelz_pb2  # noqa: F401 - registers its service
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from recurra.v1 import inference_pb2, models_pb2, sessions_pb2

from tests.support import models
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stream, Stubs, error_info, tensor


def test_health_of_the_server_its_services_and_its_models(stubs: Stubs) -> None:
    health = health_pb2_grpc.HealthStub(stubs.channel)
    for service in ("", "recurra.v1.InferenceService", "recurra.v1.SessionsService", "counter", "lstm/9"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, service
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="nothing"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_services(stubs: Stubs) -> None:
    reflection = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(reflection.ServerReflectionInfo(iter([request])))
    names = {service.name for service in answer.list_services_response.service}
    assert {"recurra.v1.ModelsService", "recurra.v1.SessionsService", "recurra.v1.InferenceService"} <= names


def test_bytes_that_are_no_message_are_refused_by_every_call_of_every_service(repository: Path) -> None:
    with running_server(repository, "--channelz") as server:
        stubs = Stubs(server.target)
        reflection = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
        listing = reflection_pb2.ServerReflectionRequest(list_services="")
        (listed,) = reflection.ServerReflectionInfo(iter([listing]))
        methods = [
            f"/{service.name}/{method.name}"
            for service in listed.list_services_response.service
            for method in descriptor_pool.Default().FindServiceByName(service.name).methods
        ]
        assert {"/grpc.channelz.v1.Channelz/GetSocket", "/grpc.health.v1.Health/Check"} <= set(methods)
        for method in methods:
            with pytest.raises(grpc.RpcError) as caught:
                list(stubs.channel.stream_stream(method)(iter([b"\x85\x73\x22"]), timeout=20))  # type: ignore[arg-type]
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, (method, caught.value)
            assert error_info(caught.value).reason == "INVALID_REQUEST"
        assert server.metrics().get("recurra_errors_total", reason="invalid_request", fault="other") == len(methods)
        server.terminate()
        server.wait()
    assert "unexpected" not in server.output
    assert "Traceback" not in server.output


def test_more_connections_are_served_than_the_soft_limit_of_open_files(repository: Path) -> None:
    """At the limit callers would wait without an answer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        server = ServerProcess(repository)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    callers = [Stubs(server.target) for _ in range(80)]
    try:
        for caller in callers:
            caller.models.ListModels(models_pb2.ListModelsRequest(), timeout=20, wait_for_ready=True)
    finally:
        for caller in callers:
            caller.channel.close()
        server.stop()


def test_metrics_count_what_happened(repository: Path) -> None:
    with running_server(repository) as server:
        stubs = Stubs(server.target)
        opening = sessions_pb2.OpenSessionRequest(model="counter")
        ids = [stubs.sessions.OpenSession(opening).session.session_id for _ in range(3)]
        for number in (1, 2, 2):
            request = inference_pb2.StepRequest(session_id=ids[0], step=number, inputs=[tensor([1])])
            stubs.inference.Step(request)
        stubs.inference.Step(inference_pb2.StepRequest(session_id=ids[1], inputs=[tensor(np.ones((10, 1)))]))
        with pytest.raises(grpc.RpcError):
            stubs.inference.Step(inference_pb2.StepRequest(session_id=ids[1], inputs=[tensor([np.nan])]))
        with pytest.raises(grpc.RpcError):
            stubs.inference.Step(inference_pb2.StepRequest(session_id="unknown", inputs=[tensor([1])]))
        stubs.sessions.CloseSession(sessions_pb2.CloseSessionRequest(session_id=ids[2]))
        samples = server.metrics()
    counter = {"model": "counter", "version": "1"}
    for name, labels, value in (
        ("recurra_steps_total", {**counter, "outcome": "ok"}, 3),
        ("recurra_steps_total", {**counter, "outcome": "replayed"}, 1),
        ("recurra_steps_total", {**counter, "outcome": "input_not_finite"}, 1),
        ("recurra_timesteps_total", counter, 12),
        ("recurra_sessions", counter, 2),
        ("recurra_sessions_opened_total", counter, 3),
        ("recurra_sessions_ended_total", {**counter, "reason": "closed"}, 1),
        ("recurra_sessions_ended_total", {**counter, "reason": "expired"}, 0),
        ("recurra_queue_depth", counter, 0),
        ("recurra_state_bytes", counter, 8),
        ("recurra_step_seconds_count", counter, 3),
        ("recurra_step_queue_seconds_count", counter, 3),
        ("recurra_step_compute_seconds_count", counter, 3),
        ("recurra_batch_size_bucket", {**counter, "le": "1"}, samples.get("recurra_batch_size_count", **counter)),
        ("recurra_errors_total", {"reason": "input_not_finite", "fault": "other"}, 1),
        ("recurra_errors_total", {"reason": "session_not_found", "fault": "other"}, 1),
        ("recurra_streams", {}, 0),
        ("recurra_draining", {}, 0),
    ):
        assert samples.get(name, **labels) == value, (name, labels)
    total = samples.get("recurra_step_seconds_sum", **counter)
    assert total is not None
    assert 0 < total < 5
    for bound in ("5e-05", "0.001", "1"):
        assert samples.get("recurra_step_seconds_bucket", **counter, le=bound) is not None
    assert {"recurra_model_info", "recurra_build_info", "process_resident_memory_bytes"} <= samples.names


def test_a_session_expires_on_the_server(repository: Path) -> None:
    with running_server(repository) as server:
        stubs = Stubs(server.target)
        opening = sessions_pb2.OpenSessionRequest(model="counter", session_id="brief", idle_timeout={"nanos": 10**6})  # type: ignore[arg-type]
        stubs.sessions.OpenSession(opening)
        # A millisecond passes while the next call is on its way, or at the latest the one after it.
        with pytest.raises(grpc.RpcError, match="expired"):
            poll(stubs, "brief")


def test_drain_tells_streams_finishes_steps_and_exits(repository: Path) -> None:
    with running_server(repository) as server:
        stubs = Stubs(server.target)
        streams = [stream_with_a_session(stubs) for _ in range(3)]
        server.terminate()
        for stream in streams:
            moving = stream.read()
            assert moving.WhichOneof("outcome") == "moving"
            assert moving.moving.grace.seconds == 10
            goes_on = stream.ask(inputs=[tensor([1])], step=2)
            assert goes_on.result.step == 2, "open sessions go on while the server drains"
            assert stream.ask(open=sessions_pb2.OpenSessionRequest(model="counter")).error.reason == "DRAINING"
            assert stream.end() == []
            assert stream.call.code() == grpc.StatusCode.OK
        assert server.wait() == 0
    assert "draining" in server.output
    assert "stopped" in server.output
    assert "Traceback" not in server.output


def test_a_stream_that_does_not_leave_is_ended_with_a_reason(repository: Path) -> None:
    with running_server(repository, "--drain-seconds", "0.2") as server:
        stream = stream_with_a_session(Stubs(server.target))
        server.terminate()
        assert stream.read().WhichOneof("outcome") == "moving"
        with pytest.raises(grpc.RpcError) as caught:
            stream.read()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "shuts down" in str(caught.value.details())
        assert server.wait() == 0


def test_settings_come_from_flag_environment_and_file(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "recurra.toml"
    config.write_text("[serve]\nmax_sessions = 1\n")
    monkeypatch.setenv("RECURRA_CONFIG", str(config))
    assert sessions_that_fit(repository) == 1
    monkeypatch.setenv("RECURRA_MAX_SESSIONS", "2")
    assert sessions_that_fit(repository) == 2
    assert sessions_that_fit(repository, "--max-sessions", "3") == 3


def test_a_broken_model_does_not_keep_the_good_ones_down(tmp_path: Path) -> None:
    models.publish(tmp_path, "good", models.counter())
    broken = models.counter()
    broken.metadata_props[0].value = broken.metadata_props[0].value.replace("float32", "float99")
    models.publish(tmp_path, "broken", broken)
    (tmp_path / "torn" / "1").mkdir(parents=True)
    (tmp_path / "torn" / "1" / "model.onnx").write_bytes(b"not a model")
    with running_server(tmp_path, "--log-format", "json") as server:
        assert "serving good" in server.output
    assert "signature.inputs[0].dtype" in server.output
    assert server.output.count("model_not_loaded") == 2
    assert "Traceback" not in server.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"x"', '"q"'), "no input 'q'"),
        (('"dims": [1]', '"dims": [2]'), "the signature says"),
        (('"format": 1', '"format": 7'), "format in recurra.signature is 7"),
        (('"format": 1', '"format": 1, "lables": []'), "signature.lables"),
        (('"float32"', '"int64"'), "in the graph"),
        (('"s_in"', '"s_inn"'), "no input 's_inn'"),
    ],
)
def test_a_signature_that_lies_is_refused_in_one_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    model = models.counter()
    model.metadata_props[0].value = model.metadata_props[0].value.replace(*change)
    models.publish(tmp_path, "counter", model)
    run = serve("--models", str(tmp_path), "--port", "0", "--metrics-port", "0", "--log-format", "json")
    assert run.returncode == 1
    assert message in run.stderr
    assert run.stderr.splitlines()[-1].startswith("recurra: none of the 1 models")


def test_what_keeps_a_server_from_starting_is_said_in_one_line(repository: Path, tmp_path: Path) -> None:
    empty = serve("--models", str(tmp_path / "nothing"))
    assert empty.returncode == 1
    assert empty.stderr.startswith("recurra: there is no ")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options in (("--port", port, "--metrics-port", "0"), ("--port", "0", "--metrics-port", port)):
            run = serve("--models", str(repository), *options, "--log-level", "warning")
            assert run.returncode == 1
            assert run.stderr.count("\n") == 1, run.stderr
            assert port in run.stderr


def poll(stubs: Stubs, session_id: str) -> None:
    for _ in range(1000):
        stubs.sessions.GetSession(sessions_pb2.GetSessionRequest(session_id=session_id))


def serve(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("recurra")), "serve", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def sessions_that_fit(repository: Path, *options: str) -> int:
    with running_server(repository, *options) as server:
        stubs = Stubs(server.target)
        for opened in range(10):
            try:
                stubs.sessions.OpenSession(sessions_pb2.OpenSessionRequest(model="counter"))
            except grpc.RpcError:
                return opened
    return 10


def stream_with_a_session(stubs: Stubs) -> Stream:
    stream = Stream(stubs)
    first = stream.ask(open=sessions_pb2.OpenSessionRequest(model="counter"), inputs=[tensor([1])])
    assert first.result.step == 1
    return stream
