"""Who may do what: tokens, JWTs, certificates, roles."""

import os
import queue
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hyperframe.frame import DataFrame, SettingsFrame
from recurra.v1.inference_pb2 import GenerateRequest, ModelVersion, StreamStepsRequest
from recurra.v1.models_pb2 import ListModelsRequest, LoadModelRequest, UnloadModelRequest
from recurra.v1.sessions_pb2 import DrainSessionsRequest, ExportSessionRequest, ImportSessionRequest, OpenSessionRequest
from recurra_server.rpc import access

from tests.security.conftest import Caller, ask, outcome, refused, scraped, wait_until
from tests.support.attacks import Attack
from tests.support.authority import TOKENS, Authority, Issuer, write_access_file
from tests.support.http2 import Rude
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stubs, tensor

SERVICES = (
    "recurra.v1.ModelsService",
    "recurra.v1.SessionsService",
    "recurra.v1.InferenceService",
    "inference.GRPCInferenceService",
    "grpc.health.v1.Health",
)
OPERATE = {
    "/grpc.health.v1.Health/List",  # tells of more than one asks for
    "/recurra.v1.ModelsService/LoadModel",
    "/recurra.v1.ModelsService/UnloadModel",
    "/recurra.v1.SessionsService/ExportSession",
    "/recurra.v1.SessionsService/ImportSession",
    "/recurra.v1.SessionsService/RewindSession",
    "/recurra.v1.SessionsService/DrainSessions",
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/RepositoryModelUnload",
}
OPEN = {
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
}


def methods() -> Iterator[tuple[str, bool, bool]]:
    """Every method of every service, and whether the caller and the server stream."""
    for service in SERVICES:
        for method in descriptor_pool.Default().FindServiceByName(service).methods:
            yield f"/{service}/{method.name}", method.client_streaming, method.server_streaming


def call_raw(stubs: Any, method: str, *, client_streaming: bool, server_streaming: bool) -> Callable[[], Any]:
    """Call a method with an empty message."""
    if client_streaming:
        return lambda: stubs.channel.stream_stream(method)(iter([b""]), timeout=20)
    if server_streaming:
        return lambda: stubs.channel.unary_stream(method)(b"", timeout=20)
    return lambda: stubs.channel.unary_unary(method)(b"", timeout=20)


@pytest.mark.parametrize(("method", "client_streaming", "server_streaming"), list(methods()))
def test_without_a_token_only_health_is_open(
    caller: Caller, method: str, client_streaming: bool, server_streaming: bool, attack: Attack
) -> None:
    call = call_raw(caller(""), method, client_streaming=client_streaming, server_streaming=server_streaming)
    if method in OPEN:
        next(call()) if server_streaming else call()
    else:
        assert refused(call) == "UNAUTHENTICATED"
        attack("gRPC port", "every call but health, without a token", "UNAUTHENTICATED")


def test_every_call_has_a_role() -> None:
    for method, *_ in methods():
        assert (method in access.OPEN) == (method in OPEN)
        if method not in OPEN:
            assert access.role_for(method).value == ("operate" if method in OPERATE else "predict"), method
    assert access.role_for("/grpc.channelz.v1.Channelz/GetServers").value == "operate"
    assert access.role_for("/made.up.Service/Call").value == "operate"


def test_tools_that_look_inside_need_a_token(caller: Caller, attack: Attack) -> None:
    def look(stubs: Stubs) -> Any:
        stub = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        return stub.ServerReflectionInfo(iter([request]), timeout=20)

    assert refused(lambda: look(caller(""))) == "UNAUTHENTICATED"
    assert next(look(caller("alice"))).list_services_response.service
    attack("gRPC port", "reflection, without a token", "UNAUTHENTICATED")


def test_channelz_is_for_who_operates(caller: Caller, attack: Attack) -> None:
    def look(name: str) -> Any:
        return channelz_pb2_grpc.ChannelzStub(caller(name).channel).GetServers(
            channelz_pb2.GetServersRequest(), timeout=20
        )

    assert refused(lambda: look("")) == "UNAUTHENTICATED"
    assert refused(lambda: look("alice")) == "PERMISSION_DENIED FORBIDDEN"
    assert look("olga").server
    attack("gRPC port", "channelz, without a token, with one that may predict", "UNAUTHENTICATED, PERMISSION_DENIED")


def test_health_stays_open(caller: Caller) -> None:
    answer = caller("").health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


BAD_TOKENS = {
    "a made-up token": "0123456789abcdef0123456789",
    "a token with its last character changed": TOKENS["alice"][:-1] + "0",
    "a token in capitals": TOKENS["alice"].upper(),
    "an empty token": " ",
    "a token of 8,000 characters": "x" * 8000,
    "the name of somebody": "alice-",
}


@pytest.mark.parametrize("tried", BAD_TOKENS)
def test_a_wrong_token_is_refused(caller: Caller, tried: str, attack: Attack) -> None:
    assert refused(lambda: ask(caller(BAD_TOKENS[tried]))) == "UNAUTHENTICATED"
    attack("gRPC port", tried, "UNAUTHENTICATED")


def test_headers_that_are_not_one_token_are_refused(
    guarded: ServerProcess, authority: Authority, attack: Attack
) -> None:
    stubs, good = Stubs(guarded.target, authority.credentials()), f"Bearer {TOKENS['alice']}"
    for tried, headers in {
        "two authorization headers": [good, good],
        "a password (Basic)": ["Basic YWxpY2U6YWxpY2U="],
        "a token without Bearer": [TOKENS["alice"]],
    }.items():
        metadata = tuple(("authorization", header) for header in headers)
        assert refused(lambda m=metadata: stubs.models.ListModels(ListModelsRequest(), metadata=m)) == "UNAUTHENTICATED"  # type: ignore[misc]
        attack("gRPC port", tried, "UNAUTHENTICATED")
    assert stubs.models.ListModels(ListModelsRequest(), metadata=(("authorization", good.replace("B", "b")),)).models
    stubs.channel.close()


# --- roles ----------------------------------------------------------------------------------


def test_who_may_only_predict_may_not_operate(caller: Caller, attack: Attack) -> None:
    alice = caller("alice")
    assert ask(alice) == 2
    for method, client_streaming, server_streaming in methods():
        if method in OPERATE:
            call = call_raw(alice, method, client_streaming=client_streaming, server_streaming=server_streaming)
            assert refused(call) == "PERMISSION_DENIED FORBIDDEN"
    attack(
        "gRPC port",
        "load, unload, export, import, rewind, drain, with a token that may predict",
        "PERMISSION_DENIED FORBIDDEN",
    )


def test_the_command_line_says_how_to_show_a_token(guarded: ServerProcess, authority: Authority) -> None:
    recurra = Path(sys.executable).with_name("recurra")
    command = [str(recurra), "models", "--server", guarded.target, "--tls-ca", str(authority.ca)]
    environment = {name: value for name, value in os.environ.items() if name != "RECURRA_TOKEN"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert ended.returncode == 1
    assert ended.stderr.endswith("on the command line: --token-file, or RECURRA_TOKEN\n")


def test_who_may_only_read_metrics_may_not_predict(caller: Caller, attack: Attack) -> None:
    assert refused(lambda: ask(caller("max"))) == "PERMISSION_DENIED FORBIDDEN"
    attack("gRPC port", "ListModels with a token that may read metrics", "PERMISSION_DENIED FORBIDDEN")


def test_an_operator_may_operate(caller: Caller) -> None:
    olga = caller("olga")
    olga.models.LoadModel(LoadModelRequest(name="counter"))
    opened = olga.sessions.OpenSession(OpenSessionRequest(model="counter")).session
    snapshot = olga.sessions.ExportSession(ExportSessionRequest(session_id=opened.session_id)).snapshot
    olga.sessions.ImportSession(ImportSessionRequest(snapshot=snapshot))
    assert refused(lambda: olga.models.UnloadModel(UnloadModelRequest(name="absent"))) == "NOT_FOUND MODEL_NOT_FOUND"


def test_metrics_need_their_role(guarded: ServerProcess, authority: Authority, attack: Attack) -> None:
    assert scraped(guarded, authority, f"Bearer {TOKENS['max']}") == 200
    for tried, header in {
        "no token": "",
        "a made-up token": "Bearer 0123456789abcdef0123456789",
        "a token that may predict": f"Bearer {TOKENS['alice']}",
        "no Bearer": TOKENS["max"],
    }.items():
        assert scraped(guarded, authority, header) == 401
        attack("metrics port", tried, "401")


def test_a_drain_tells_of_the_sessions_of_all_callers(repository: Path, access_file: Path) -> None:
    with running_server(repository, "--access", str(access_file), "--no-metrics", ready="who may") as server:
        alice, olga = (Stubs(server.target, token=TOKENS[name]) for name in ("alice", "olga"))
        alice.sessions.OpenSession(OpenSessionRequest(model="counter"))
        left = olga.sessions.DrainSessions(DrainSessionsRequest(grace=Duration())).left
        assert left == 1
        for stubs in (alice, olga):
            stubs.channel.close()


# --- the file -------------------------------------------------------------------------------


BUSY_SECOND = 5.0  # seconds: a second, where the tests may keep all cores busy


def test_the_access_file_is_read_again(repository: Path, tmp_path: Path, attack: Attack) -> None:
    issuer, access_file = Issuer(tmp_path / "issuer"), tmp_path / "access.yaml"
    write_access_file(access_file, issuer)
    with running_server(repository, "--access", str(access_file), "--no-metrics", ready="who may") as server:
        assert outcome(server, TOKENS["alice"]) == "ok"
        access_file.write_text("tokens: [{name: alice, roles: [everything]}]")
        wait_for_words(server, "access_file_refused")
        assert outcome(server, TOKENS["alice"]) == "ok"  # what cannot be used changes nothing
        write_access_file(access_file, issuer, tokens=[])
        taken_back = time.monotonic()
        wait_for_words(server, "access_file_reloaded")
        assert outcome(server, TOKENS["alice"]) == "UNAUTHENTICATED"
        assert time.monotonic() - taken_back < BUSY_SECOND
        attack("gRPC port", "a token that was taken back", "UNAUTHENTICATED within a second")
        assert not any(token in server.output for token in TOKENS.values())


def test_calls_that_last_end_when_their_token_is_taken_back(repository: Path, tmp_path: Path, attack: Attack) -> None:
    issuer, access_file = Issuer(tmp_path / "issuer"), tmp_path / "access.yaml"
    write_access_file(access_file, issuer, limits={"steps_per_second": 2})
    with running_server(repository, "--access", str(access_file), "--no-metrics", ready="who may") as server:
        stubs = Stubs(server.target, token=TOKENS["alice"])
        questions: queue.SimpleQueue[reflection_pb2.ServerReflectionRequest | None] = queue.SimpleQueue()
        request = GenerateRequest(model=ModelVersion(name="echo"), inputs=[tensor([1.0])], max_steps=200)
        asked = reflection_pb2_grpc.ServerReflectionStub(stubs.channel).ServerReflectionInfo
        calls = {
            "Generate": stubs.inference.Generate(request, timeout=60),
            "reflection": asked(iter(questions.get, None), timeout=60),
        }
        questions.put(reflection_pb2.ServerReflectionRequest(list_services=""))
        for call in calls.values():
            next(call)
        write_access_file(access_file, issuer, tokens=[])
        taken_back = time.monotonic()
        for tried, call in calls.items():
            assert refused(lambda c=call: list(c)) == "UNAUTHENTICATED"  # type: ignore[misc]
            assert time.monotonic() - taken_back < BUSY_SECOND
            attack("gRPC port", f"{tried} that outlives its token", "ended with UNAUTHENTICATED within a second")
        questions.put(None)
        stubs.channel.close()


def test_calls_that_are_not_read_end_when_their_token_is_taken_back(
    repository: Path, tmp_path: Path, attack: Attack
) -> None:
    issuer, access_file = Issuer(tmp_path / "issuer"), tmp_path / "access.yaml"
    write_access_file(access_file, issuer)
    calls: dict[str, Message] = {
        "StreamSteps": StreamStepsRequest(open=OpenSessionRequest(model="counter"), inputs=[tensor([1.0])]),
        "Generate": GenerateRequest(model=ModelVersion(name="echo"), inputs=[tensor([1.0])], max_steps=20),
    }
    flags = ("--access", str(access_file), "--slow-reader-timeout", "0")
    with (
        running_server(repository, *flags) as server,
        Rude(server.target, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as rude,
    ):

        def told(name: str, **labels: str) -> float:
            return server.metrics(TOKENS["max"]).get(name, **labels) or 0.0

        for number, (method, message) in zip((1, 3), calls.items(), strict=True):
            data = message.SerializeToString()
            path, last = f"/recurra.v1.InferenceService/{method}", ["END_STREAM"] if method == "Generate" else []
            rude.send(rude.call(number, path, authorization=f"Bearer {TOKENS['alice']}"))
            rude.send(DataFrame(number, b"\0" + struct.pack(">I", len(data)) + data, flags=last))
        steps, of = "recurra_timesteps_total", [{"model": model, "version": "1"} for model in ("counter", "echo")]
        assert wait_until(lambda: all(told(steps, **labels) > 0 for labels in of))
        assert told("recurra_streams") == 1
        write_access_file(access_file, issuer, tokens=[{"name": "max", "roles": ["metrics"], "token": TOKENS["max"]}])
        assert wait_until(lambda: told("recurra_streams") == 0, BUSY_SECOND), "StreamSteps"
        served_no_more = {"reason": "slow_reader", "fault": "other"}
        assert wait_until(lambda: told("recurra_errors_total", **served_no_more) == 1, BUSY_SECOND), "Generate"
    attack("gRPC port", "a call that outlives its token, and is not read", "served no more within a second")


def wait_for_words(server: ServerProcess, words: str) -> None:
    while words not in server.output:
        assert server.new_output.wait(30)
        server.new_output.clear()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tokens: [{name: a, roles: [predict], token: short}]", "20 characters"),
        ("tokens: [{name: a, roles: [predict]}]", "either sha256 or token"),
        ("tokens: [{name: a, roles: [rule], sha256: " + "0" * 64 + "}]", "roles"),
        ("jwt: {issuer: i, audience: a, jwks: 'http://issuer.test/keys'}", "use https"),
        ("jwt: {issuer: i, audience: a, jwks: keys.json, algorithms: [HS256]}", "algorithms"),
        ("tokens: [", "not YAML"),
        ("tolkens: []", "tolkens"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_wrong_access_file_is_one_line(repository: Path, tmp_path: Path, text: str, why: str, attack: Attack) -> None:
    path = tmp_path / "access.yaml"
    path.write_text(text)
    with pytest.raises(RuntimeError, match=why) as refusal:
        ServerProcess(repository, "--access", str(path))
    assert str(refusal.value).count("\n") == 2
    assert "short" not in str(refusal.value).replace(str(path), "")
    attack(
        "access file and keys",
        "a file with code in it, short tokens, made-up roles, keys over http",
        "the server does not start; the file's words are not shown",
    )


def test_no_secret_is_in_the_log(guarded: ServerProcess, caller: Caller, issuer: Issuer, attack: Attack) -> None:
    token = issuer.token()
    ask(caller(token))
    with pytest.raises(grpc.RpcError):
        ask(caller("wrong-wrong-wrong-wrong-wrong"))
    for secret in (*TOKENS.values(), token, "wrong-wrong"):
        assert secret not in guarded.output
    attack("log", "finding tokens in it, known or not", "none")
