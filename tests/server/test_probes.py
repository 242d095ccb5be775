"""What a server tells over HTTP beside its metrics, and through channelz."""

import os
import select
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from prometheus_client import CollectorRegistry
from recurra_server.security.certificates import CertificateError
from recurra_server.telemetry.exporter import MOST_CONNECTIONS, Exporter

from tests.support import models
from tests.support.attacks import Attack
from tests.support.authority import Authority
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stream, Stubs, tensor

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    models.publish(root, "counter", models.counter())
    return root


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ready_until_it_drains_and_healthy_until_it_ends(repository: Path, workers: str) -> None:
    with running_server(repository, "--workers", workers, "--drain-seconds", "20") as server:
        assert ask(server, "/healthz") == (200, "ok\n")
        assert ask(server, "/readyz") == (200, "ok\n")
        assert ask(server, "/metrics")[0] == 200
        assert ask(server, "/")[0] == 404

        stream = Stream(Stubs(server.target))
        stream.ask(open={"model": "counter"}, inputs=[tensor([1])])
        server.terminate()
        while not stream.read().HasField("moving"):
            pass
        status, why = ask(server, "/readyz")
        assert status == 503
        assert "it shuts down" in why
        assert ask(server, "/healthz") == (200, "ok\n")
        stream.end()
        assert server.wait() == 0


def test_a_server_that_is_stuck_is_not_healthy(repository: Path) -> None:
    with running_server(repository, "--workers", "2") as server:
        stopped = children(server)
        try:
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            assert ask(server, "/readyz")[0] == 503
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        assert ask(server, "/readyz") == (200, "ok\n")


def test_channelz_tells_of_connections_where_it_is_asked_for(repository: Path) -> None:
    with running_server(repository, "--channelz") as server, grpc.insecure_channel(server.target) as channel:
        stub = channelz_pb2_grpc.ChannelzStub(channel)
        (told,) = stub.GetServers(channelz_pb2.GetServersRequest(), timeout=10).server
        assert told.data.calls_started >= 1
        sockets = stub.GetServerSockets(channelz_pb2.GetServerSocketsRequest(server_id=told.ref.server_id), timeout=10)
        assert len(sockets.socket_ref) >= 1
    with running_server(repository) as server, grpc.insecure_channel(server.target) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channelz_pb2_grpc.ChannelzStub(channel).GetServers(channelz_pb2.GetServersRequest(), timeout=10)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def ask(server: ServerProcess, path: str) -> tuple[int, str]:
    """Status and body of an answer."""
    try:
        with urllib.request.urlopen(server.metrics_url.replace("/metrics", path), timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def children(server: ServerProcess) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]


def test_a_certificate_that_cannot_be_read_just_now_ends_one_connection(capfd: pytest.CaptureFixture[str]) -> None:
    files = {"fit": False}

    def context() -> ssl.SSLContext:
        if not files["fit"]:
            raise CertificateError("they are being changed")
        raise ssl.SSLError("no more was asked for")

    exporter = Exporter(CollectorRegistry(), lambda: "", lambda: "", "127.0.0.1", 0, tls=context)
    for files["fit"] in (False, True):
        with socket.create_connection(("127.0.0.1", exporter.port), timeout=10) as connection:
            assert connection.recv(1) == b""
    exporter.close()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_connection_on_which_bytes_drip_is_ended(tmp_path: Path, encrypted: bool, attack: Attack) -> None:
    authority, server = Authority(tmp_path), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(authority.cert, authority.key)
    tls = (lambda: server) if encrypted else None
    exporter = Exporter(CollectorRegistry(), lambda: "", lambda: "", "127.0.0.1", 0, tls=tls, slowest=0.5)
    with ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", exporter.port), timeout=10))
        if encrypted:
            client = ssl.create_default_context(cafile=str(authority.ca))
            connection = stack.enter_context(client.wrap_socket(connection, server_hostname="localhost"))
        connection.settimeout(0.05)
        for _ in range(200):
            try:
                assert connection.recv(1) == b""
                break
            except TimeoutError:
                connection.sendall(b"x")
        else:
            pytest.fail("it goes on for ever")
    exporter.close()
    attack("metrics port", "a request or handshake byte by byte (slow loris)", "closed after ten seconds")


def test_slow_connections_keep_nobody_out(attack: Attack) -> None:
    exporter = Exporter(CollectorRegistry(), lambda: "", lambda: "", "127.0.0.1", 0, slowest=1000.0)
    with ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", exporter.port), timeout=10))
            for _ in range(MOST_CONNECTIONS + 3)
        ]
        with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/healthz", timeout=10) as answer:
            assert answer.status == 200
        ended: list[socket.socket] = []
        patience = time.monotonic() + 10
        while len(ended) < 4:  # as many as came too many
            assert time.monotonic() < patience
            ended, _, _ = select.select(slow, [], [], 10)
        assert [connection.recv(1) for connection in ended] == [b""] * 4
        left = next(connection for connection in slow if connection not in ended)
        left.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b"200 OK" in left.recv(100)
    exporter.close()
    attack(
        "metrics port",
        "a flood of connections on which nothing is said",
        "whoever has been there longest is closed; others are answered",
    )
