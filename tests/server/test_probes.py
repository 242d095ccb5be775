"""What a server tells over HTTP beside its metrics, and through channelz."""

import asyncio
import os
import random
import select
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from recurra_server.security.certificates import CertificateError
from recurra_server.telemetry.exporter import MOST_CONNECTIONS, Exporter, on_loop
from structlog.testing import capture_logs

from tests.support import models
from tests.support.attacks import Attack
from tests.support.authority import Authority
from tests.support.server import ServerProcess, children, running_server
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


def test_a_server_whose_workers_are_all_stuck_is_not_healthy(repository: Path) -> None:
    with running_server(repository, "--workers", "2") as server, ThreadPoolExecutor() as pool:
        stopped, paths = children(server.pid), ("/healthz", "/readyz")
        try:
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            answers = list(pool.map(partial(ask, server), paths))
            assert answers == [(503, "a worker does not answer\n")] * 2
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        assert [ask(server, path) for path in paths] == [(200, "ok\n")] * 2


async def test_an_event_loop_that_is_stuck_is_not_healthy() -> None:
    probe = on_loop(lambda: "", patience=0.1)
    exporter = Exporter(CollectorRegistry(), probe, probe, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{exporter.port}/healthz"
    # Asked on the loop's own thread, which so does nothing else until there is an answer.
    assert get(url) == (503, "the event loop has not answered for 0.1 s\n")
    assert await asyncio.to_thread(get, url) == (200, "ok\n")
    await asyncio.to_thread(exporter.close)


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
    return get(server.metrics_url.replace("/metrics", path))


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


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


def raw(port: int, request: bytes) -> bytes:
    """Whatever comes back for whatever is sent, to the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection, connection.makefile("rb") as answer:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return answer.read()


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (b"application/openmetrics-text;version=x", b"text/plain"),
        (b"application/openmetrics-text;version=2.x", b"text/plain"),
        (b"application/openmetrics-text; version=" + b"9" * 5000, b"text/plain"),
        (b"text/plain;version=\xff, application/openmetrics-text;version=1.0.0", b"application/openmetrics-text"),
        (b"application/openmetrics-text", b"application/openmetrics-text"),
    ],
)
def test_a_format_that_cannot_be_understood_is_not_offered(accept: bytes, content_type: bytes) -> None:
    exporter = Exporter(CollectorRegistry(), lambda: "", lambda: "", "127.0.0.1", 0)
    answer = raw(exporter.port, b"GET /metrics HTTP/1.0\r\nAccept: " + accept + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 200 OK")
    assert b"Content-Type: " + content_type in answer
    exporter.close()


def test_bytes_of_any_kind_are_answered_or_not_and_leave_no_trace(repository: Path) -> None:
    rng = random.Random(1)
    with running_server(repository) as server:
        port = int(server.metrics_url.removesuffix("/metrics").rpartition(":")[2])
        odd = b"GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text;version=x\r\n\r\n"
        assert b"200 OK" in raw(port, odd)
        for request in (
            odd,
            b"GET / HTTP/1.x\r\n\r\n",
            b"GET \xff%\xff?\0 HTTP/1.1\r\n\xff\r\n\r\n",
            b"x" * 70_000,
            b"",
        ):
            for _ in range(20):
                data = bytearray(request)
                for _ in range(rng.choice((0, 1, 5))):
                    position = rng.randrange(len(data) + 1)
                    data[position : position + 1] = rng.randbytes(rng.choice((0, 1, 9)))
                with suppress(ConnectionResetError):  # it has not read all
                    raw(port, bytes(data))
        assert ask(server, "/healthz") == (200, "ok\n")
        server.terminate()
        assert server.wait() == 0
    assert "Traceback" not in server.output
    assert "unexpected" not in server.output


def test_what_is_unexpected_is_an_event_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    class Broken(Collector):
        def collect(self) -> Iterable[Metric]:
            raise ZeroDivisionError("of all things")

        def describe(self) -> Iterable[Metric]:
            return ()

    registry = CollectorRegistry()
    registry.register(Broken())
    exporter = Exporter(registry, lambda: "", lambda: "", "127.0.0.1", 0)
    with capture_logs() as events:
        assert b"500 Internal Server Error" in raw(exporter.port, b"GET /metrics HTTP/1.0\r\n\r\n")
    exporter.close()
    assert [event["event"] for event in events] == ["unexpected"]
    assert capfd.readouterr().err == ""


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
